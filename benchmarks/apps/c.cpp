// student.c: one sample again and again. RAW.bin CALLS
#include "student.h"

#include "cost.h"

#include <cstdlib>

int main(int, char **argv) {
    static unsigned char raw[STUDENT_RAW_BYTES], arena[STUDENT_ARENA_BYTES];
    float scores[STUDENT_OUTPUTS];
    std::FILE *file = std::fopen(argv[1], "rb");
    if (file == nullptr || std::fread(raw, 1, sizeof raw, file) != sizeof raw) {
        return 1;
    }
    measure(std::atoi(argv[2]), [&] {
        student_run_bytes(raw, scores, arena);
        return scores[0];
    });
    return 0;
}
