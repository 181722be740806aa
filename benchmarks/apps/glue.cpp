// edgekd.hpp: load a bundle, predict one sample again and again. BUNDLE VARIANT RAW.npy CALLS
#include "edgekd.hpp"

#include "cost.h"

int main(int, char **argv) {
    edgekd::Options options;
    options.variant = argv[2];
    const edgekd::Student student(argv[1], options);
    const edgekd::Array sample = edgekd::read_array(argv[3]);
    measure(std::atoi(argv[4]), [&] { return student.predict(sample).score; });
    return 0;
}
