// A program around the student: it proves this build, and shows how to call it.
//
//     app --self-test                       the golden vectors of the bundle; exit 0 when every one holds, 1 otherwise
//     app digit.pgm sample.npy --top-k 3    what the student says; PGM, PPM, PAM (8 or 16 bits) or .npy
//     app "book a table for two"            the same of a text, for a student of texts; - for each line of the input
//     app --show sample.npy                 what the model reads of a sample, after preprocessing, one number per line
//
// Options: --bundle PATH (student.edgekd), --variant NAME, --threads N, --top-k N.
// Exit: 0 done, 1 the self-test failed, 2 usage, 3 input refused, 4 something is missing here.
#include "edgekd.hpp"

#include <cstdlib>
#include <iostream>

namespace {

struct Arguments {
    std::vector<std::string> inputs;
    std::filesystem::path bundle = "student.edgekd";
    edgekd::Options options;
    int top_k = 1;
    bool self_test = false, show = false;
};

int whole(const std::string &name, const std::string &text) {
    if (text.empty() || text.size() > 6 || text.find_first_not_of("0123456789") != std::string::npos) {
        throw edgekd::Error(name + " is '" + text + "', expected a whole number", 2);
    }
    return std::atoi(text.c_str());
}

Arguments parse(const std::vector<std::string> &words) {
    Arguments result;
    for (std::size_t i = 0; i < words.size(); i++) {
        const std::string &word = words[i];
        if (word == "--self-test") {
            result.self_test = true;
        } else if (word == "--show") {
            result.show = true;
        } else if (word == "--bundle" || word == "--variant" || word == "--threads" || word == "--top-k") {
            if (++i == words.size()) {
                throw edgekd::Error(word + " needs a value", 2);
            }
            if (word == "--bundle") {
                result.bundle = words[i];
            } else if (word == "--variant") {
                result.options.variant = words[i];
            } else {
                (word == "--threads" ? result.options.threads : result.top_k) = whole(word, words[i]);
            }
        } else if (word.compare(0, 1, "-") == 0 && word != "-") {
            throw edgekd::Error(
                "unknown option " + word + ", expected --self-test, --show, --bundle, --variant, --threads or --top-k",
                2);
        } else {
            result.inputs.push_back(word);
        }
    }
    if (result.inputs.empty() && !result.self_test) {
        throw edgekd::Error("usage: app FILE-OR-TEXT... | app --self-test", 2);
    }
    return result;
}

// The lines of the standard input.
std::vector<std::string> lines() {
    std::vector<std::string> result;
    for (std::string line; std::getline(std::cin, line);) {
        if (!line.empty() && line.back() == '\r') {
            line.pop_back();
        }
        result.push_back(line);
    }
    return result;
}

// How many numbers a vector has, and the first three.
void tell_vector(const edgekd::Floats &vector) {
    std::cout.precision(4);
    std::cout << ' ' << vector.size() << " numbers:" << std::fixed;
    for (std::size_t i = 0; i < std::min<std::size_t>(vector.size(), 3); i++) {
        std::cout << ' ' << vector[i];
    }
    std::cout << (vector.size() > 3 ? " ..." : "");
}

void tell(const edgekd::Student &student, const std::string &name, const edgekd::Answer &answer) {
    std::cout << name << ":";
    if (student.bundle().manifest().task == "embedding") {
        tell_vector(answer.outputs);
    } else {
        for (const auto &[label, score] : answer.top) {
            std::cout << "  " << label << ' ' << score;
        }
    }
    std::cout << '\n';
    if (answer.truncated) {
        std::cerr << "note: this text is longer than the model reads: its end was not looked at\n";
    }
}

void run_on_texts(const edgekd::Student &student, const Arguments &arguments, std::size_t top_k) {
    for (const std::string &input : arguments.inputs) {
        for (const std::string &text : input == "-" ? lines() : std::vector<std::string>{input}) {
            if (arguments.show) {
                for (const std::int32_t id : student.tokens_of(text).ids) {
                    std::cout << id << '\n';
                }
            } else {
                tell(student, text, student.predict(text, top_k));
            }
        }
    }
}

int run(const Arguments &arguments) {
    const edgekd::Student student(arguments.bundle, arguments.options);
    if (arguments.self_test) {
        const std::vector<std::string> problems = student.self_test();
        for (const std::string &problem : problems) {
            std::cerr << "self-test FAILED: " << student.variant() << ": " << problem << '\n';
        }
        if (!problems.empty()) {
            return 1;
        }
        std::cout << "self-test passed: " << student.variant() << " gives its golden outputs here\n";
    }
    const auto top_k = static_cast<std::size_t>(std::max(arguments.top_k, 0));
    if (student.reads_text()) {
        run_on_texts(student, arguments, top_k);
        return 0;
    }
    for (const std::string &name : arguments.inputs) {
        const edgekd::Array sample = edgekd::read_array(name);
        if (arguments.show) {
            edgekd::Array ready = edgekd::prepare(student.bundle().manifest().preprocess, sample);
            ready.shape.insert(ready.shape.begin(), 1);
            ready = student.arithmetic_of(ready);
            std::cout.precision(9);
            for (const float value : ready.floats()) {
                std::cout << value << '\n';
            }
            continue;
        }
        tell(student, name, student.predict(sample, top_k));
    }
    return 0;
}

}  // namespace

int main(int argc, char **argv) {
    try {
        return run(parse(std::vector<std::string>(argv + 1, argv + argc)));
    } catch (const edgekd::Error &error) {
        std::cerr << "error: " << error.what() << '\n';
        return error.exit_code;
    } catch (const std::exception &error) {
        std::cerr << "error: " << error.what() << "; check the input\n";
        return 3;
    }
}
