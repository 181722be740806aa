/* A program around the student for a PC: it proves the generated code, and shows how to call it.
 *
 *   ./student --self-test     the golden vectors of the bundle; exit 0 when every one holds, 1 otherwise
 *   ./student FILE            one sample: STUDENT_RAW_BYTES bytes, or STUDENT_INPUTS floats where there are no raw bytes
 *
 * Exit: 0 done, 1 the answer is no, 2 usage, 3 input refused. A microcontroller needs student.c and student.h only.
 */
#include "golden.h"
#include "student.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#ifdef STUDENT_RAW_BYTES
typedef unsigned char sample_type;
#define SAMPLE_SIZE STUDENT_RAW_BYTES
#define run_sample student_run_bytes
#else
typedef float sample_type;
#define SAMPLE_SIZE STUDENT_INPUTS
#define run_sample student_run
#endif

static unsigned char arena[STUDENT_ARENA_BYTES];

/* Whether the output is, bit for bit, that of edgekd's integer reference. */
static int same_bits(const float *output, const float *expected) {
    return memcmp(output, expected, STUDENT_OUTPUTS * sizeof(float)) == 0;
}

static int self_test(void) {
    float output[STUDENT_OUTPUTS];
    int exact = 0, total = 0, near = 0, same_answer = 0, i, o;
    for (i = 0; i < GOLDEN_INPUTS; i++, total++) {
        exact += student_run(golden_input[i], output, arena) == STUDENT_OK && same_bits(output, golden_expected[i]);
    }
#ifdef STUDENT_RAW_BYTES
    for (i = 0; i < GOLDEN_COUNT; i++, total++) {
        exact += student_run_bytes(golden_raw[i], output, arena) == STUDENT_OK && same_bits(output, golden_expected[i]);
    }
#endif
    for (i = 0; i < GOLDEN_COUNT; i++) {
        int inside = 1;
        for (o = 0; o < STUDENT_OUTPUTS; o++) {
            const float wanted = golden_bundle[i][o];
            inside &= fabsf(golden_expected[i][o] - wanted) <= GOLDEN_ABS + GOLDEN_REL * fabsf(wanted);
        }
        near += inside;
        same_answer += student_best(golden_expected[i]) == student_best(golden_bundle[i]);
    }
    printf("%d of %d samples as the integer reference, bit for bit\n", exact, total);
    printf("%d of %d within the bundle's tolerance of its golden outputs, %d with the same answer\n", near, GOLDEN_COUNT,
           same_answer);
    if (exact != total || near != GOLDEN_COUNT ||
        (GOLDEN_CLASSIFIES && (float)same_answer < GOLDEN_AGREEMENT * (float)GOLDEN_COUNT)) {
        fprintf(stderr, "self-test FAILED: do not use this build; compile without -ffast-math\n");
        return 1;
    }
    printf("self-test passed\n");
    return 0;
}

static void print_answer(const float *output) {
    float scores[STUDENT_OUTPUTS], total = 0.0f;
    const float largest = output[student_best(output)];
    int o;
    if (POST_VECTOR) {
        printf("%d numbers:", STUDENT_OUTPUTS);
        for (o = 0; o < STUDENT_OUTPUTS && o < 3; o++) {
            printf(" %.4f", (double)output[o]);
        }
        printf("%s\n", STUDENT_OUTPUTS > 3 ? " ..." : "");
        return;
    }
    for (o = 0; o < STUDENT_OUTPUTS; o++) {
        if (POST_SOFTMAX) {
            scores[o] = expf((output[o] - largest) / POST_TEMPERATURE);
        } else if (POST_SIGMOID) {
            scores[o] = 0.5f * (1.0f + tanhf(0.5f * output[o]));
        } else {
            scores[o] = output[o] * post_scale[o] + post_shift[o];
        }
        total += scores[o];
    }
    for (o = 0; o < STUDENT_OUTPUTS; o++) {
        if (!POST_SOFTMAX) {
            printf("%s %.6g\n", student_labels[o], (double)scores[o]);
        } else if (o == student_best(output)) {
            printf("%s %.6g\n", student_labels[o], (double)(scores[o] / total));
        }
    }
}

int main(int argc, char **argv) {
    static sample_type sample[SAMPLE_SIZE + 1];
    float output[STUDENT_OUTPUTS];
    size_t found;
    FILE *file;
    if (argc == 2 && strcmp(argv[1], "--self-test") == 0) {
        return self_test();
    }
    if (argc != 2) {
        fprintf(stderr, "usage: %s --self-test | %s FILE\n", argv[0], argv[0]);
        return 2;
    }
    file = fopen(argv[1], "rb");
    if (file == NULL) {
        fprintf(stderr, "error: cannot read %s; check the path\n", argv[1]);
        return 3;
    }
    found = fread(sample, sizeof(sample_type), SAMPLE_SIZE + 1, file);
    fclose(file);
    if (found != SAMPLE_SIZE) {
        fprintf(stderr, "error: %s holds %s than one sample, expected %lu bytes\n", argv[1],
                found > SAMPLE_SIZE ? "more" : "less", (unsigned long)(SAMPLE_SIZE * sizeof(sample_type)));
        return 3;
    }
    if (run_sample(sample, output, arena) != STUDENT_OK) {
        fprintf(stderr, "error: %s holds NaN or infinity; check the sensor\n", argv[1]);
        return 3;
    }
    print_answer(output);
    return 0;
}
