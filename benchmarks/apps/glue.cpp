// edgekd.hpp: load a bundle, predict one sample again and again. BUNDLE VARIANT RAW.npy CALLS, or a text in its place
// and one word more
#include "edgekd.hpp"

#include "cost.h"

int main(int count, char **argv) {
    edgekd::Options options;
    options.variant = argv[2];
    const edgekd::Student student(argv[1], options);
    if (count > 5) {
        const std::string text = argv[3];
        measure(std::atoi(argv[4]), [&] { return student.predict(text).score; });
        return 0;
    }
    const edgekd::Array sample = edgekd::read_array(argv[3]);
    measure(std::atoi(argv[4]), [&] { return student.predict(sample).score; });
    return 0;
}
