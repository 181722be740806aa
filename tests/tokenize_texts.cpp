// tokenize_texts TOKENIZER MAX_LENGTH: texts from the input, each its number of bytes, a blank and the bytes; the ids of
// each on a line, after the padding's and whether the text was too long.
#include "edgekd.hpp"

#include <cstdlib>
#include <iostream>

int main(int argc, char **argv) {
    try {
        const edgekd::Tokenizer tokenizer(edgekd::read_file(argv[argc - 2], edgekd::max_file));
        for (std::size_t size = 0; std::cin >> size;) {
            std::string text(size, '\0');
            std::cin.get();
            std::cin.read(text.data(), static_cast<std::streamsize>(size));
            const edgekd::Tokens tokens = tokenizer.encode(text, std::strtoul(argv[argc - 1], nullptr, 10));
            std::cout << tokenizer.pad() << ' ' << tokens.truncated;
            for (const std::int32_t id : tokens.ids) {
                std::cout << ' ' << id;
            }
            std::cout << '\n';
        }
    } catch (const edgekd::Error &error) {
        std::cerr << "error: " << error.what() << '\n';
        return error.exit_code;
    }
    return 0;
}
