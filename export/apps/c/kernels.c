/* The layers of an int8 student. edgekd copies those that a student needs into its student.c.
 *
 * C99, no heap, no library. Sums are 32-bit integers; edgekd has checked that none can overflow. A sum becomes a byte by
 * one float multiplication, rounded with ties to even. `volatile` keeps a compiler from fusing or widening that
 * arithmetic: every machine with IEEE 754 floats gives the same bytes.
 */

/* -- base -- */
typedef struct {
    int channels_in, height_in, width_in;
    int channels_out, height_out, width_out;
    int kernel_height, kernel_width;
    int stride_y, stride_x;
    int pad_top, pad_left;
    int dilation_y, dilation_x;
    int groups;
} window;

typedef struct {
    int zero_in, zero_out; /* the byte that stands for 0 */
    int low, high;         /* what a byte may be; narrower than 0..255 after a ReLU */
} range;

/* Rounds a count of steps to the nearest byte. 1.5 * 2^23 + x has no room for fractions, and rounds them to even. */
static unsigned char to_byte(float steps, const range *r) {
    const float low = (float)(r->low - r->zero_out);
    const float high = (float)(r->high - r->zero_out);
    const float bounded = steps < low ? low : (steps > high ? high : steps);
    volatile float shifted = bounded + 12582912.0f;
    const float whole = shifted - 12582912.0f;
    return (unsigned char)((int)whole + r->zero_out);
}

/* -- product -- */
static float product(float left, float right) {
    volatile float rounded = left * right;
    return rounded;
}

/* -- quantize -- */
/* The matrix (rows, columns) of floats as bytes, turned round; 1 where a float is not finite. */
static int quantize(const float *in, unsigned char *out, int rows, int columns, float step, const range *r) {
    int row, column;
    for (row = 0; row < rows; row++) {
        for (column = 0; column < columns; column++) {
            const float value = in[row * columns + column];
            volatile float steps = value / step;
            if (!(value - value == 0.0f)) {
                return 1;
            }
            out[column * rows + row] = to_byte(steps, r);
        }
    }
    return 0;
}

/* -- dequantize -- */
static void dequantize(const unsigned char *in, float *out, int size, int zero_in, float step) {
    int i;
    for (i = 0; i < size; i++) {
        out[i] = product((float)((int)in[i] - zero_in), step);
    }
}

/* -- linear_sum -- */
static int32_t linear_sum(const unsigned char *in, const signed char *weights, int32_t sum, int size, int zero_in) {
    int i;
    for (i = 0; i < size; i++) {
        sum += ((int32_t)in[i] - zero_in) * weights[i];
    }
    return sum;
}

/* -- linear -- */
static void linear(const unsigned char *in, unsigned char *out, int inputs, int outputs, const signed char *weights,
                   const int32_t *bias, const float *multipliers, const range *r) {
    int o;
    for (o = 0; o < outputs; o++) {
        const int32_t sum = linear_sum(in, weights + (size_t)o * (size_t)inputs, bias[o], inputs, r->zero_in);
        out[o] = to_byte(product((float)sum, multipliers[o]), r);
    }
}

/* -- linear_to_float -- */
static void linear_to_float(const unsigned char *in, float *out, int inputs, int outputs, const signed char *weights,
                            const int32_t *bias, const float *multipliers, int zero_in) {
    int o;
    for (o = 0; o < outputs; o++) {
        const int32_t sum = linear_sum(in, weights + (size_t)o * (size_t)inputs, bias[o], inputs, zero_in);
        out[o] = product((float)sum, multipliers[o]);
    }
}

/* -- convolution_sum -- */
static int32_t convolution_sum(const unsigned char *in, const signed char *weights, int32_t sum, const window *w,
                               int first, int channels, int top, int left, int zero_in) {
    int c, ky, kx;
    for (c = 0; c < channels; c++) {
        const unsigned char *plane = in + (size_t)(first + c) * (size_t)(w->height_in * w->width_in);
        for (ky = 0; ky < w->kernel_height; ky++) {
            const int y = top + ky * w->dilation_y;
            if (y < 0 || y >= w->height_in) {
                weights += w->kernel_width;
                continue;
            }
            for (kx = 0; kx < w->kernel_width; kx++, weights++) {
                const int x = left + kx * w->dilation_x;
                if (x >= 0 && x < w->width_in) {
                    sum += ((int32_t)plane[y * w->width_in + x] - zero_in) * *weights;
                }
            }
        }
    }
    return sum;
}

/* -- convolution -- */
static void convolution(const unsigned char *in, unsigned char *out, const window *w, const signed char *weights,
                        const int32_t *bias, const float *multipliers, const range *r) {
    const int channels = w->channels_in / w->groups;
    const int per_group = w->channels_out / w->groups;
    const int size = channels * w->kernel_height * w->kernel_width;
    int o, y, x;
    for (o = 0; o < w->channels_out; o++, weights += size) {
        for (y = 0; y < w->height_out; y++) {
            for (x = 0; x < w->width_out; x++) {
                const int32_t sum =
                    convolution_sum(in, weights, bias[o], w, o / per_group * channels, channels,
                                    y * w->stride_y - w->pad_top, x * w->stride_x - w->pad_left, r->zero_in);
                *out++ = to_byte(product((float)sum, multipliers[o]), r);
            }
        }
    }
}

/* -- convolution_to_float -- */
static void convolution_to_float(const unsigned char *in, float *out, const window *w, const signed char *weights,
                                 const int32_t *bias, const float *multipliers, int zero_in) {
    const int channels = w->channels_in / w->groups;
    const int per_group = w->channels_out / w->groups;
    const int size = channels * w->kernel_height * w->kernel_width;
    int o, y, x;
    for (o = 0; o < w->channels_out; o++, weights += size) {
        for (y = 0; y < w->height_out; y++) {
            for (x = 0; x < w->width_out; x++) {
                const int32_t sum =
                    convolution_sum(in, weights, bias[o], w, o / per_group * channels, channels,
                                    y * w->stride_y - w->pad_top, x * w->stride_x - w->pad_left, zero_in);
                *out++ = product((float)sum, multipliers[o]);
            }
        }
    }
}

/* -- pool -- */
/* The largest byte under each window, or the mean of all of it, padding included as zeros. */
static void pool(const unsigned char *in, unsigned char *out, const window *w, int largest, float multiplier,
                 const range *r) {
    int c, y, x, ky, kx;
    for (c = 0; c < w->channels_out; c++, in += w->height_in * w->width_in) {
        for (y = 0; y < w->height_out; y++) {
            for (x = 0; x < w->width_out; x++) {
                int32_t found = largest ? -256 : 0;
                for (ky = 0; ky < w->kernel_height; ky++) {
                    for (kx = 0; kx < w->kernel_width; kx++) {
                        const int row = y * w->stride_y - w->pad_top + ky;
                        const int column = x * w->stride_x - w->pad_left + kx;
                        if (row >= 0 && row < w->height_in && column >= 0 && column < w->width_in) {
                            const int32_t value = (int32_t)in[row * w->width_in + column] - r->zero_in;
                            found = largest ? (value > found ? value : found) : found + value;
                        }
                    }
                }
                *out++ = to_byte(product((float)found, multiplier), r);
            }
        }
    }
}

/* -- add -- */
static void add(const unsigned char *left, const unsigned char *right, unsigned char *out, int size, int zero_left,
                int zero_right, float multiplier_left, float multiplier_right, const range *r) {
    int i;
    for (i = 0; i < size; i++) {
        volatile float steps = product((float)((int)left[i] - zero_left), multiplier_left) +
                               product((float)((int)right[i] - zero_right), multiplier_right);
        out[i] = to_byte(steps, r);
    }
}

/* -- look_up -- */
/* Raw bytes, channels side by side, through a table per channel; planar: one channel after the other. */
static void look_up(const unsigned char *raw, unsigned char *out, int pixels, int channels, int planar,
                    const unsigned char *tables) {
    int p, c;
    for (p = 0; p < pixels; p++) {
        for (c = 0; c < channels; c++) {
            out[planar ? c * pixels + p : p * channels + c] = tables[c * 256 + raw[p * channels + c]];
        }
    }
}

/* -- best -- */
int student_best(const float *output) {
    int best = 0;
    int i;
    for (i = 1; i < STUDENT_OUTPUTS; i++) {
        if (output[i] > output[best]) {
            best = i;
        }
    }
    return best;
}
