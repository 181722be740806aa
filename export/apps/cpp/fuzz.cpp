// Damaged bundles for the reader: each must open or throw edgekd::Error, nothing else.
//
//     clang++ -std=c++17 -g -O1 -fsanitize=fuzzer,address,undefined -DEDGEKD_LIBFUZZER fuzz.cpp -o fuzz
//     ./fuzz -runs=100000 SEEDS             (SEEDS: a folder with a bundle.json, a tokenizer.json, a .npy, a zip)
//     g++ -std=c++17 -g -O1 -fsanitize=address,undefined fuzz.cpp -o fuzz && ./fuzz 20000 FILE...   (without clang)
#include "edgekd.hpp"

#include <cstdlib>
#include <iostream>
#include <random>

namespace {

std::size_t opened = 0, refused = 0;

template <typename Work>
void attempt(const Work &work) {
    try {
        work();
        opened++;
    } catch (const edgekd::Error &error) {
        refused++;
        if (std::strlen(error.what()) < 10) {
            std::abort();
        }
    }
}

// The manifest's parser, the zip's, the array's, the tokenizer's, data as a text; and whatever steps a readable manifest
// holds, on a small image.
void every_reader(const std::string &data) {
    attempt([&] {
        const edgekd::Manifest manifest = edgekd::parse_manifest(data);
        for (const edgekd::Step &step : manifest.preprocess) {
            if (!step.size.empty() && step.size[0] * step.size.back() > 65536) {
                return;  // a large image is slow under sanitizers, not wrong
            }
        }
        edgekd::Array sample({5, 7, 3}, edgekd::Bytes(105, 99));
        sample = edgekd::prepare(manifest.preprocess, sample);
        sample.shape.insert(sample.shape.begin(), 1);
        edgekd::postprocess(manifest.postprocess, edgekd::arithmetic(manifest.preprocess, sample).floats(),
                            sample.count());
    });
    attempt([&] { edgekd::parse_npy(data, "array"); });
    attempt([&] { edgekd::Tokenizer(data).encode("[MASK] a text", 16); });
    static const edgekd::Tokenizer tokenizer(
        R"({"model": {"type": "WordPiece", "vocab": {"[PAD]": 0, "[UNK]": 1, "a": 2, "##e": 3, ",": 4},
        "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "normalizer": {"type": "BertNormalizer", "clean_text": true,
        "handle_chinese_chars": true, "strip_accents": null, "lowercase": true}})");
    attempt([&] { tokenizer.encode(data, 100); });
    attempt([&] {
        const edgekd::Zip archive(data, "zip");
        for (const std::string &name : archive.names()) {
            attempt([&] { edgekd::parse_npy(archive.read(name), name); });
        }
    });
}

}  // namespace

#ifdef EDGEKD_LIBFUZZER
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    every_reader(std::string(reinterpret_cast<const char *>(data), size));
    return 0;
}
#else
// Changes as fuzzers make them: bytes turned, removed, doubled, replaced by telling ones, cut off, of two files joined.
int main(int argc, char **argv) {
    if (argc < 3) {
        std::cerr << "usage: fuzz COUNT FILE...\n";
        return 2;
    }
    std::vector<std::string> seeds;
    for (int i = 2; i < argc; i++) {
        seeds.push_back(edgekd::read_file(argv[i], edgekd::max_file));
    }
    static const std::vector<std::string> telling = {"0",
                                                     "-1",
                                                     "1e309",
                                                     "9223372036854775808",
                                                     "null",
                                                     "true",
                                                     "\"\"",
                                                     "[]",
                                                     "{}",
                                                     "\"..\"",
                                                     "\\ud800",
                                                     "\xff",
                                                     "[[[[",
                                                     "16385",
                                                     std::string("\0", 1),
                                                     "\xff\xff\xff\xff",
                                                     "PK\x01\x02",
                                                     "\"op\"",
                                                     "\"version\": 2",
                                                     "1e-300",
                                                     "\"train\""};
    std::mt19937 random(0);
    const auto below = [&](std::size_t end) { return end == 0 ? 0 : random() % end; };
    const long count = std::atol(argv[1]);
    for (long run = 0; run < count; run++) {
        std::string data = seeds[below(seeds.size())];
        for (std::size_t change = 1 + below(4); change-- > 0;) {
            const std::size_t at = below(data.size()), length = below(std::min<std::size_t>(data.size() - at, 40));
            const std::string &other = seeds[below(seeds.size())];
            switch (below(6)) {
                case 0:
                    if (!data.empty()) {
                        data[at] = static_cast<char>(data[at] ^ (1 << below(8)));
                    }
                    break;
                case 1:
                    data.erase(at, length);
                    break;
                case 2:
                    data.insert(at, data.substr(at, length));
                    break;
                case 3:
                    data.replace(at, length, telling[below(telling.size())]);
                    break;
                case 4:
                    data.resize(at);
                    break;
                default:
                    data = data.substr(0, at) + other.substr(below(other.size()));
                    break;
            }
        }
        every_reader(data);
    }
    std::cout << count << " inputs: " << opened << " opened, " << refused << " refused\n";
    return 0;
}
#endif
