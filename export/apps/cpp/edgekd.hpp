// A student in one header: C++17, an inference runtime, nothing else.
//
//     #include "edgekd.hpp"
//
//     edgekd::Student student("student.edgekd");                            // folder or zip; every byte hashed
//     const edgekd::Answer answer = student.predict(edgekd::read_array("digit.pgm"), 3);
//     std::cout << answer.label << ' ' << answer.score << '\n';
//
// Define EDGEKD_ONNXRUNTIME (with onnxruntime_c_api.h and its library) or EDGEKD_OPENVINO (with openvino/openvino.hpp),
// or give `Student` a function that opens a backend of your own. What cannot be used throws edgekd::Error, whose text
// says what to do. Compile without -ffast-math, and with -ffp-contract=off for the same bits on every chip. Apache-2.0.
#ifndef EDGEKD_HPP
#define EDGEKD_HPP

#include <algorithm>
#include <array>
#include <cctype>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <locale>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif
#ifdef EDGEKD_ONNXRUNTIME
#include <onnxruntime_c_api.h>
#endif
#ifdef EDGEKD_OPENVINO
#include <openvino/openvino.hpp>
#endif

namespace edgekd {

constexpr std::size_t max_manifest = 1000000, max_file = std::size_t(1) << 31, max_numbers = std::size_t(1) << 28;
constexpr std::size_t max_side = 16384, max_depth = 64, max_entries = 10000, max_text = 10000000;
constexpr const char *fresh = "; get a fresh copy of the bundle";

// What cannot be used, and what to do about it. exit_code: 3 for an input, 2 for an argument, 4 for a lack.
class Error : public std::runtime_error {
  public:
    explicit Error(const std::string &text, int code = 3) : std::runtime_error(text), exit_code(code) {}
    int exit_code;
};

// ---- numbers ------------------------------------------------------------------------------------------------------

using Shape = std::vector<std::size_t>;
using Bytes = std::vector<std::uint8_t>;
using Floats = std::vector<float>;

inline std::string text_of(const Shape &shape) {
    std::string text = "(";
    for (std::size_t i = 0; i < shape.size(); i++) {
        text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
    }
    return text + ")";
}

// The product of the sides; an Error where it passes max_numbers.
inline std::size_t count_of(const Shape &shape) {
    std::size_t count = 1;
    for (const std::size_t side : shape) {
        if (side != 0 && count > max_numbers / side) {
            throw Error("an array of shape " + text_of(shape) + " is too large; scale the image down first");
        }
        count *= side;
    }
    return count;
}

// Bytes or floats in C order. Images are (H, W) or (H, W, C).
struct Array {
    Shape shape;
    std::variant<Bytes, Floats> data;

    Array() = default;
    Array(Shape sides, Bytes values) : Array(std::move(sides), std::variant<Bytes, Floats>(std::move(values))) {}
    Array(Shape sides, Floats values) : Array(std::move(sides), std::variant<Bytes, Floats>(std::move(values))) {}

    bool is_bytes() const { return std::holds_alternative<Bytes>(data); }
    std::size_t count() const { return is_bytes() ? std::get<Bytes>(data).size() : std::get<Floats>(data).size(); }
    const Bytes &bytes() const { return std::get<Bytes>(data); }
    const Floats &floats() const { return std::get<Floats>(data); }
    Floats as_floats() const { return is_bytes() ? Floats(bytes().begin(), bytes().end()) : floats(); }

  private:
    Array(Shape sides, std::variant<Bytes, Floats> values) : shape(std::move(sides)), data(std::move(values)) {
        if (count_of(shape) != count()) {
            throw Error("found " + std::to_string(count()) + " numbers for an array of shape " + text_of(shape), 2);
        }
    }
};

// ---- SHA-256 (FIPS 180-4) -----------------------------------------------------------------------------------------

inline std::string sha256(const std::string &data) {
    static constexpr std::array<std::uint32_t, 64> k = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    std::array<std::uint32_t, 8> state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                          0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    const auto turn = [](std::uint32_t x, int by) { return (x >> by) | (x << (32 - by)); };
    const auto block = [&](const unsigned char *at) {
        std::array<std::uint32_t, 64> w{};
        for (std::size_t i = 0; i < 16; i++) {
            w[i] = std::uint32_t(at[4 * i]) << 24 | std::uint32_t(at[4 * i + 1]) << 16 |
                   std::uint32_t(at[4 * i + 2]) << 8 | std::uint32_t(at[4 * i + 3]);
        }
        for (std::size_t i = 16; i < 64; i++) {
            const std::uint32_t a = w[i - 15], b = w[i - 2];
            w[i] =
                w[i - 16] + (turn(a, 7) ^ turn(a, 18) ^ (a >> 3)) + w[i - 7] + (turn(b, 17) ^ turn(b, 19) ^ (b >> 10));
        }
        std::array<std::uint32_t, 8> s = state;
        for (std::size_t i = 0; i < 64; i++) {
            const std::uint32_t choice = (s[4] & s[5]) ^ (~s[4] & s[6]);
            const std::uint32_t majority = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]);
            const std::uint32_t one = s[7] + (turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25)) + choice + k[i] + w[i];
            const std::uint32_t two = (turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22)) + majority;
            s = {one + two, s[0], s[1], s[2], s[3] + one, s[4], s[5], s[6]};
        }
        for (std::size_t i = 0; i < 8; i++) {
            state[i] += s[i];
        }
    };
    const auto *bytes = reinterpret_cast<const unsigned char *>(data.data());
    std::size_t at = 0;
    for (; at + 64 <= data.size(); at += 64) {
        block(bytes + at);
    }
    std::array<unsigned char, 128> tail{};
    const std::size_t rest = data.size() - at, padded = rest < 56 ? 64 : 128;
    std::copy(bytes + at, bytes + data.size(), tail.begin());
    tail[rest] = 0x80;
    for (std::size_t i = 0; i < 8; i++) {
        tail[padded - 1 - i] = static_cast<unsigned char>((std::uint64_t(data.size()) * 8) >> (8 * i));
    }
    for (std::size_t i = 0; i < padded; i += 64) {
        block(tail.data() + i);
    }
    std::string text;
    for (const std::uint32_t word : state) {
        for (int shift = 28; shift >= 0; shift -= 4) {
            text += "0123456789abcdef"[(word >> shift) & 15U];
        }
    }
    return text;
}

// ---- UTF-8 (RFC 3629) ---------------------------------------------------------------------------------------------

inline void append_utf8(std::string &text, char32_t code) {
    const auto put = [&](char32_t byte) { text += static_cast<char>(static_cast<unsigned char>(byte)); };
    if (code < 0x80) {
        put(code);
    } else if (code < 0x800) {
        put(0xC0 | code >> 6);
        put(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        put(0xE0 | code >> 12);
        put(0x80 | (code >> 6 & 0x3F));
        put(0x80 | (code & 0x3F));
    } else {
        put(0xF0 | code >> 18);
        put(0x80 | (code >> 12 & 0x3F));
        put(0x80 | (code >> 6 & 0x3F));
        put(0x80 | (code & 0x3F));
    }
}

// How many bytes the character at `at` has; 0 where there is none, an overlong one or half of a pair.
inline std::size_t utf8_at(const std::string &text, std::size_t at, char32_t &code) {
    const auto lead = static_cast<unsigned char>(text[at]);
    code = lead;
    if (lead < 0x80) {
        return 1;
    }
    const std::size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (lead < 0xC2 || lead > 0xF4 || at + length > text.size()) {
        return 0;
    }
    code = lead & (0xFFU >> (length + 1));
    for (std::size_t i = 1; i < length; i++) {
        const auto next = static_cast<unsigned char>(text[at + i]);
        if ((next & 0xC0) != 0x80) {
            return 0;
        }
        code = code << 6 | (next & 0x3FU);
    }
    static constexpr std::array<unsigned, 5> least = {0, 0, 0x80, 0x800, 0x10000};
    return code < least[length] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000) ? 0 : length;
}

// ---- JSON (RFC 8259): strict, no key twice, numbers finite and within 64 bits -------------------------------------

class Json {
  public:
    enum class Kind { null, boolean, number, text, list, table };

    // The value that the whole text is. Throws Error.
    static Json parse(const std::string &text, const std::string &name = "bundle.json");

    Kind kind() const { return kind_; }
    bool is(Kind kind) const { return kind_ == kind; }
    const std::vector<Json> &items() const { return items_; }
    const std::vector<std::string> &keys() const { return keys_; }

    const Json *find(const std::string &key) const {
        const auto at = std::find(keys_.begin(), keys_.end(), key);
        return at == keys_.end() ? nullptr : &items_[static_cast<std::size_t>(at - keys_.begin())];
    }
    const Json &at(const std::string &key, const std::string &where) const {
        const Json *found = table(where).find(key);
        if (found == nullptr) {
            throw Error("bundle.json: " + (where.empty() ? key : where + "." + key) + " is missing" + fresh);
        }
        return *found;
    }
    const Json &table(const std::string &where) const { return expect(Kind::table, where, "a table"); }
    const Json &list(const std::string &where) const { return expect(Kind::list, where, "a list"); }
    const std::string &text(const std::string &where) const { return expect(Kind::text, where, "a text").text_; }
    bool boolean(const std::string &where) const { return expect(Kind::boolean, where, "true or false").flag_; }
    double number(const std::string &where) const { return expect(Kind::number, where, "a number").number_; }
    bool is_whole(std::size_t least, std::size_t most) const {
        return is(Kind::number) && is_whole_ && number_ >= double(least) && number_ <= double(most);
    }
    // A whole number from `least` to `most`.
    std::size_t whole(const std::string &where, std::size_t least, std::size_t most) const {
        if (!is_whole(least, most)) {
            wrong(where, "a whole number from " + std::to_string(least) + " to " + std::to_string(most));
        }
        return static_cast<std::size_t>(number_);
    }
    [[noreturn]] static void wrong(const std::string &where, const std::string &expected) {
        throw Error("bundle.json: " + (where.empty() ? "the manifest" : where) + " is not " + expected + fresh);
    }

  private:
    friend class JsonReader;
    const Json &expect(Kind kind, const std::string &where, const char *expected) const {
        if (kind_ != kind) {
            wrong(where, expected);
        }
        return *this;
    }

    Kind kind_ = Kind::null;
    bool flag_ = false, is_whole_ = false;
    double number_ = 0;
    std::string text_;
    std::vector<std::string> keys_;
    std::vector<Json> items_;
};

class JsonReader {
  public:
    JsonReader(const std::string &text, const std::string &name) : text_(text), name_(name) {}

    Json whole() {
        Json value = read(0);
        skip();
        if (at_ != text_.size()) {
            fail("something stands behind its end");
        }
        return value;
    }

  private:
    [[noreturn]] void fail(const std::string &why) const {
        throw Error(name_ + " is not readable as JSON (" + why + " at byte " + std::to_string(at_) + ")" + fresh);
    }
    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
    static bool digit(char c) { return c >= '0' && c <= '9'; }
    void skip() {
        while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_]) != nullptr && text_[at_] != '\0') {
            at_++;
        }
    }
    bool take(char c) {
        skip();
        if (peek() != c || at_ >= text_.size()) {
            return false;
        }
        at_++;
        return true;
    }
    void need(char c) {
        if (!take(c)) {
            fail(std::string("expected '") + c + "'");
        }
    }

    Json read(std::size_t depth) {
        if (depth > max_depth) {
            fail("it is nested too deep");
        }
        skip();
        Json value;
        const char c = peek();
        if (c == '{') {
            table(value, depth);
        } else if (c == '[') {
            value.kind_ = Json::Kind::list;
            at_++;
            if (!take(']')) {
                do {
                    value.items_.push_back(read(depth + 1));
                } while (take(','));
                need(']');
            }
        } else if (c == '"') {
            value.kind_ = Json::Kind::text;
            value.text_ = string();
        } else if (c == '-' || digit(c)) {
            number(value);
        } else if (word("true") || word("false")) {
            value.kind_ = Json::Kind::boolean;
            value.flag_ = c == 't';
        } else if (!word("null")) {
            fail("expected a value");
        }
        return value;
    }

    bool word(const char *expected) {
        if (text_.compare(at_, std::strlen(expected), expected) != 0) {
            return false;
        }
        at_ += std::strlen(expected);
        return true;
    }

    void table(Json &value, std::size_t depth) {
        value.kind_ = Json::Kind::table;
        at_++;
        if (take('}')) {
            return;
        }
        do {
            skip();
            if (peek() != '"') {
                fail("expected a key");
            }
            value.keys_.push_back(string());
            need(':');
            value.items_.push_back(read(depth + 1));
        } while (take(','));
        need('}');
        std::vector<std::string> sorted = value.keys_;
        std::sort(sorted.begin(), sorted.end());
        if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
            fail("a key stands twice in one table");
        }
    }

    void number(Json &value) {
        const std::size_t start = at_;
        bool whole = true;
        const auto digits = [&] {
            if (!digit(peek())) {
                fail("expected a digit");
            }
            while (digit(peek())) {
                at_++;
            }
        };
        at_ += peek() == '-' ? 1 : 0;
        if (peek() == '0') {
            at_++;
        } else {
            digits();
        }
        if (peek() == '.') {
            whole = false;
            at_++;
            digits();
        }
        if (peek() == 'e' || peek() == 'E') {
            whole = false;
            at_++;
            at_ += peek() == '+' || peek() == '-' ? 1 : 0;
            digits();
        }
        std::istringstream stream(text_.substr(start, at_ - start));
        stream.imbue(std::locale::classic());
        stream >> value.number_;
        if (!std::isfinite(value.number_) || std::fabs(value.number_) == std::numeric_limits<double>::max() ||
            (whole && std::fabs(value.number_) >= 9223372036854775808.0)) {
            fail("a number is too large");
        }
        value.kind_ = Json::Kind::number;
        value.is_whole_ = whole;
    }

    unsigned hexadecimal() {
        unsigned code = 0;
        for (int i = 0; i < 4; i++, at_++) {
            const char c = peek();
            const char *digits = "0123456789abcdef", *found = nullptr;
            const char lower = c >= 'A' && c <= 'F' ? static_cast<char>(c + 32) : c;
            found = c == '\0' ? nullptr : std::strchr(digits, lower);
            if (found == nullptr) {
                fail("expected four hexadecimal digits");
            }
            code = code * 16 + static_cast<unsigned>(found - digits);
        }
        return code;
    }

    // One character of several bytes.
    void multibyte(std::string &result) {
        char32_t code = 0;
        const std::size_t length = utf8_at(text_, at_, code);
        if (length == 0) {
            fail("it is not UTF-8");
        }
        result.append(text_, at_, length);
        at_ += length;
    }

    std::string string() {
        std::string result;
        at_++;
        while (true) {
            if (at_ >= text_.size()) {
                fail("a text does not end");
            }
            const auto c = static_cast<unsigned char>(text_[at_]);
            if (c == '"') {
                at_++;
                return result;
            }
            if (c < 0x20) {
                fail("a text holds a control character");
            }
            if (c >= 0x80) {
                multibyte(result);
            } else if (c != '\\') {
                result += text_[at_++];
            } else {
                escape(result);
            }
        }
    }

    void escape(std::string &result) {
        at_++;
        const char c = peek();
        static const std::string names = "\"\\/bfnrt", meant = "\"\\/\b\f\n\r\t";
        const std::size_t found = c == '\0' ? std::string::npos : names.find(c);
        at_++;
        if (found != std::string::npos) {
            result += meant[found];
            return;
        }
        if (c != 'u') {
            fail("an unknown escape");
        }
        unsigned code = hexadecimal();
        if (code >= 0xD800 && code < 0xDC00 && text_.compare(at_, 2, "\\u") == 0) {
            at_ += 2;
            const unsigned low = hexadecimal();
            if (low < 0xDC00 || low > 0xDFFF) {
                fail("half of a surrogate pair");
            }
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        }
        if (code >= 0xD800 && code < 0xE000) {
            fail("half of a surrogate pair");
        }
        append_utf8(result, code);
    }

    const std::string &text_, &name_;
    std::size_t at_ = 0;
};

inline Json Json::parse(const std::string &text, const std::string &name) {
    return JsonReader(text, name).whole();
}

// ---- files: a folder or a zip that somebody else made; nothing is unpacked to the disk ----------------------------

// Whether a name stays inside the bundle.
inline bool is_safe(const std::string &name) {
    if (name.empty() || name.size() > 255) {
        return false;
    }
    std::string part;
    for (const char c : name + "/") {
        if (static_cast<unsigned char>(c) < 32 || c == 127 || std::strchr("\\:*?\"<>|", c) != nullptr) {
            return false;
        }
        if (c != '/') {
            part += c;
            continue;
        }
        if (part.empty() || part == "." || part == "..") {
            return false;
        }
        part.clear();
    }
    return true;
}

inline std::string read_file(const std::filesystem::path &path, std::size_t limit) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw Error("cannot read " + path.string() + "; check the path and its permissions");
    }
    std::string data;
    std::array<char, 65536> block{};
    while (file.read(block.data(), block.size()) || file.gcount() > 0) {
        data.append(block.data(), static_cast<std::size_t>(file.gcount()));
        if (data.size() > limit) {
            throw Error(path.string() + " is longer than " + std::to_string(limit) + " bytes" + fresh);
        }
    }
    return data;
}

// A zip in memory whose entries are stored, as `edgekd bundle --zip` and numpy write them.
class Zip {
  public:
    Zip() = default;
    Zip(std::string data, std::string name) : data_(std::move(data)), name_(std::move(name)) {
        std::size_t end = data_.size() < 22 ? 0 : data_.size() - 22;
        const std::size_t lowest = end > 65535 ? end - 65535 : 0;
        while (end > lowest && number(end, 4) != 0x06054b50) {
            end--;
        }
        if (data_.size() < 22 || number(end, 4) != 0x06054b50) {
            damaged("it has no directory");
        }
        const std::size_t entries = number(end + 10, 2);
        std::size_t at = number(end + 16, 4);
        if (entries > max_entries) {
            damaged("it holds more than " + std::to_string(max_entries) + " entries");
        }
        for (std::size_t i = 0; i < entries; i++) {
            if (at > end || end - at < 46 || number(at, 4) != 0x02014b50) {
                damaged("its directory is cut short");
            }
            const std::size_t length = number(at + 28, 2);
            if (end - at - 46 < length) {
                damaged("its directory is cut short");
            }
            add(data_.substr(at + 46, length), at);
            at += 46 + length + number(at + 30, 2) + number(at + 32, 2);
        }
    }

    std::vector<std::string> names() const {
        std::vector<std::string> result;
        for (const auto &entry : entries_) {
            result.push_back(entry.first);
        }
        return result;
    }
    std::optional<std::size_t> size(const std::string &name) const {
        const auto found = entries_.find(name);
        return found == entries_.end() ? std::nullopt : std::optional<std::size_t>(found->second.second);
    }
    std::string read(const std::string &name) const {
        const auto found = entries_.find(name);
        if (found == entries_.end()) {
            throw Error(name + " is missing in " + name_ + fresh);
        }
        return data_.substr(found->second.first, found->second.second);
    }

  private:
    [[noreturn]] void damaged(const std::string &why) const {
        throw Error(name_ + " is no readable zip (" + why + ")" + fresh);
    }
    std::size_t number(std::size_t at, std::size_t bytes) const {
        std::size_t value = 0;
        for (std::size_t i = bytes; i-- > 0;) {
            value = value << 8 | static_cast<unsigned char>(data_[at + i]);
        }
        return value;
    }
    void add(const std::string &name, std::size_t at) {
        const std::size_t flags = number(at + 8, 2), method = number(at + 10, 2), packed = number(at + 20, 4);
        const std::size_t size = number(at + 24, 4), start = number(at + 42, 4), mode = number(at + 38, 4) >> 16;
        const std::size_t kind = mode & 0170000;
        const bool folder = !name.empty() && name.back() == '/';
        if (!is_safe(folder ? name.substr(0, name.size() - 1) : name) || entries_.count(name) > 0 || (flags & 1) != 0 ||
            (kind != 0 && kind != 0100000 && kind != 0040000)) {
            damaged("an entry leads elsewhere, comes twice, is a link or encrypted");
        }
        if (method != 0 || packed != size) {
            throw Error(name_ + " holds '" + name +
                        "' compressed, and this reader has no decompressor; unpack it into a " +
                        "folder, or write it with 'edgekd bundle ... --zip'");
        }
        if (start > data_.size() || data_.size() - start < 30 || number(start, 4) != 0x04034b50) {
            damaged("an entry lies outside of it");
        }
        const std::size_t from = start + 30 + number(start + 26, 2) + number(start + 28, 2);
        if (from > data_.size() || data_.size() - from < size) {
            damaged("an entry is cut short");
        }
        entries_[name] = {from, size};
    }

    std::string data_, name_;
    std::map<std::string, std::pair<std::size_t, std::size_t>> entries_;
};

// An .npy file of plain numbers as bytes (uint8) or floats (everything else).
inline Array parse_npy(const std::string &raw, const std::string &name) {
    const auto refuse = [&](const std::string &why) {
        throw Error(name + " is no .npy file of numbers (" + why + ")" + fresh);
    };
    const bool second = raw.compare(0, 8, std::string("\x93NUMPY\x02\x00", 8)) == 0;
    if ((!second && raw.compare(0, 8, std::string("\x93NUMPY\x01\x00", 8)) != 0) || raw.size() < 12) {
        refuse("its first bytes are others");
    }
    const auto byte = [&](std::size_t at) { return static_cast<std::size_t>(static_cast<unsigned char>(raw[at])); };
    const std::size_t start = second ? 12 : 10;
    const std::size_t length = byte(8) | byte(9) << 8 | (second ? byte(10) << 16 | byte(11) << 24 : 0);
    if (length > raw.size() - start) {
        refuse("it is cut short");
    }
    const std::string header = raw.substr(start, length);
    std::size_t at = 0;
    const auto word = [&](const std::string &expected) {
        const bool fits = header.compare(at, expected.size(), expected) == 0;
        at += fits ? expected.size() : 0;
        return fits;
    };
    if (!word("{'descr': '") || header.size() < at + 3) {
        refuse("found another header");
    }
    const std::string type = header.substr(at, 3);
    at += 3;
    bool fits = word("', 'fortran_order': ");
    const bool fortran = fits && word("True");
    fits = fits && (fortran || word("False")) && word(", 'shape': (");
    Shape shape;
    while (fits && at < header.size() && header[at] >= '0' && header[at] <= '9' && shape.size() < 32) {
        std::size_t side = 0;
        for (int digits = 0; at < header.size() && header[at] >= '0' && header[at] <= '9'; at++, digits++) {
            if (digits >= 10) {
                refuse("a side is too long");
            }
            side = side * 10 + static_cast<std::size_t>(header[at] - '0');
        }
        shape.push_back(side);
        if (!word(", ")) {
            word(",");
        }
    }
    if (!fits || !word(")")) {
        refuse("found another header");
    }
    static const std::map<std::string, std::size_t> sizes = {{"|u1", 1}, {"|i1", 1}, {"|b1", 1}, {"<u2", 2},
                                                             {"<i2", 2}, {"<u4", 4}, {"<i4", 4}, {"<u8", 8},
                                                             {"<i8", 8}, {"<f4", 4}, {"<f8", 8}};
    const auto known = sizes.find(type);
    if (known == sizes.end()) {
        refuse("numbers of type " + type + " are not read here");
    }
    const std::size_t count = count_of(shape), size = known->second;
    if ((raw.size() - start - length) / size != count || (raw.size() - start - length) % size != 0) {
        refuse("found " + std::to_string(raw.size() - start - length) + " bytes for the shape " + text_of(shape));
    }
    const char *data = raw.data() + start + length;
    const auto cast = [&](auto example, auto &into) {
        using T = decltype(example);
        // The place of each number in the file: with Fortran's order the first axis runs fastest.
        Shape index(shape.size(), 0);
        for (std::size_t i = 0; i < count; i++) {
            std::size_t place = i;
            if (fortran) {
                place = 0;
                for (std::size_t axis = shape.size(); axis-- > 0;) {
                    place = place * shape[axis] + index[axis];
                }
                for (std::size_t axis = shape.size(); axis-- > 0 && ++index[axis] == shape[axis];) {
                    index[axis] = 0;
                }
            }
            T value;
            std::memcpy(&value, data + place * sizeof(T), sizeof(T));
            into[i] = static_cast<typename std::decay_t<decltype(into)>::value_type>(value);
        }
    };
    if (type == "|u1") {
        Bytes bytes(count);
        cast(std::uint8_t{}, bytes);
        return Array(shape, std::move(bytes));
    }
    Floats floats(count);
    if (type == "<f4") {
        cast(float{}, floats);
    } else if (type == "<f8") {
        for (std::size_t i = 0; i < count; i++) {  // a double beyond float's range must not be cast
            double value;
            std::memcpy(&value, data + 8 * i, 8);
            if (std::fabs(value) > double(std::numeric_limits<float>::max())) {
                refuse("a number is beyond float32");
            }
        }
        cast(double{}, floats);
    } else if (type == "<i8") {
        cast(std::int64_t{}, floats);
    } else if (type == "<u8") {
        cast(std::uint64_t{}, floats);
    } else if (type == "<i4") {
        cast(std::int32_t{}, floats);
    } else if (type == "<u4") {
        cast(std::uint32_t{}, floats);
    } else if (type == "<i2") {
        cast(std::int16_t{}, floats);
    } else if (type == "<u2") {
        cast(std::uint16_t{}, floats);
    } else if (type == "|i1") {
        cast(std::int8_t{}, floats);
    } else {
        cast(std::uint8_t{}, floats);
    }
    return Array(shape, std::move(floats));
}

// A sample from .npy, or an image from PGM, PPM or PAM (8 or 16 bits; PAM may be transparent). 16-bit grey keeps its
// upper byte, as BUNDLE.md says. Other formats: decode them with the library of your app, upright, and give an Array.
inline Array read_array(const std::filesystem::path &path) {
    const std::string data = read_file(path, max_file), name = path.string();
    if (data.compare(0, 6, "\x93NUMPY") == 0) {
        return parse_npy(data, name);
    }
    const auto refuse = [&](const std::string &why) {
        throw Error(name + " " + why + "; expected .npy, PGM, PPM or PAM: convert it first, or decode it in your app");
    };
    std::size_t at = 2;
    const auto word = [&] {
        while (at < data.size() && (std::isspace(static_cast<unsigned char>(data[at])) != 0 || data[at] == '#')) {
            at = data[at] == '#' ? std::min(data.find('\n', at), data.size() - 1) + 1 : at + 1;
        }
        std::string text;
        while (at < data.size() && std::isspace(static_cast<unsigned char>(data[at])) == 0 && text.size() < 20) {
            text += data[at++];
        }
        return text;
    };
    const auto whole = [&](std::size_t most) {
        const std::string text = word();
        const bool fits = !text.empty() && text.size() < 7 && text.find_first_not_of("0123456789") == std::string::npos;
        const std::size_t value = fits ? std::stoul(text) : 0;
        if (value < 1 || value > most) {
            refuse("has a damaged header");
        }
        return value;
    };
    std::size_t width = 0, height = 0, channels = 1, top = 0;
    const std::string magic = data.substr(0, 2);
    if (magic == "P5" || magic == "P6") {
        channels = magic == "P6" ? 3 : 1;
        width = whole(max_side);
        height = whole(max_side);
        top = whole(65535);
    } else if (magic == "P7") {
        for (std::string key = word(); key != "ENDHDR"; key = word()) {
            if (key == "WIDTH") {
                width = whole(max_side);
            } else if (key == "HEIGHT") {
                height = whole(max_side);
            } else if (key == "DEPTH") {
                channels = whole(4);
            } else if (key == "MAXVAL") {
                top = whole(65535);
            } else if (key != "TUPLTYPE" || word().empty()) {
                refuse("has a damaged header");
            }
        }
    } else {
        refuse("has an unknown format");
    }
    const std::size_t size = top > 255 ? 2 : 1;
    if (width == 0 || height == 0 || top == 0 || at + 1 > data.size() ||
        data.size() - at - 1 != width * height * channels * size) {
        refuse("holds another number of bytes than its header says");
    }
    at++;
    Bytes pixels(width * height * channels);
    for (std::size_t i = 0; i < pixels.size(); i++, at += size) {
        const std::size_t first = static_cast<unsigned char>(data[at]);
        const std::size_t value = size == 1 ? first : first << 8 | static_cast<unsigned char>(data[at + 1]);
        if (size == 2 && channels < 3) {
            pixels[i] = static_cast<std::uint8_t>(std::min<std::size_t>(value * 65535 / top, 65535) >> 8);
        } else {
            pixels[i] = static_cast<std::uint8_t>(std::min<std::size_t>((value * 255 + top / 2) / top, 255));
        }
    }
    return Array({height, width, channels}, std::move(pixels));
}

// ---- the manifest -------------------------------------------------------------------------------------------------

// One step of pre- or postprocessing; BUNDLE.md says what each does.
struct Step {
    std::string op, filter = "bilinear", to = "CHW", file;
    bool white = false, antialias = true;
    std::size_t max_length = 128, pad = 0;
    std::vector<std::size_t> size;  // height and width, or the shorter side
    double factor = 1.0 / 255.0, temperature = 1.0, value = 0.5;
    std::vector<double> mean = {0.0}, std = {1.0};
};

struct Tensor {
    std::string name, dtype;
    std::vector<std::size_t> shape;  // 0: a symbolic axis
};

struct Variant {
    std::string graph;
    double abs = 1e-4, rel = 1e-3, label_agreement = 1.0;
    std::vector<std::string> golden;  // its outputs that golden.npz holds
};

struct File {
    std::string sha256;
    std::size_t size = 0;
};

struct Manifest {
    std::string name, task, golden;
    std::vector<std::string> labels, variant_names;
    std::vector<Step> preprocess, postprocess;
    std::vector<Tensor> inputs, outputs;
    std::map<std::string, Variant> variants;
    std::vector<std::pair<std::string, std::string>> defaults;
    std::map<std::string, File> files;
};

inline bool is_spatial(const Step &step) {
    return step.op == "decode" || step.op == "to_rgb" || step.op == "to_grey" || step.op == "resize" ||
           step.op == "center_crop" || step.op == "tokenize";
}
inline bool reads_texts(const std::vector<Step> &steps) {
    return !steps.empty() && steps.front().op == "tokenize";
}

inline std::vector<double> numbers_of(const Json &list, const std::string &where) {
    std::vector<double> result;
    for (const Json &item : list.list(where).items()) {
        result.push_back(item.number(where));
    }
    if (result.empty()) {
        Json::wrong(where, "a list of numbers");
    }
    return result;
}

inline Step step_of(const Json &table, const std::string &where, const std::vector<std::string> &known) {
    Step step;
    step.op = table.at("op", where).text(where + ".op");
    if (std::find(known.begin(), known.end(), step.op) == known.end()) {
        throw Error("bundle.json: " + where + " is the step '" + step.op +
                    "', which this reader lacks; get a newer edgekd.hpp");
    }
    const auto get = [&](const char *key) { return table.find(key); };
    const auto place = [&](const char *key) { return where + "." + key; };
    const bool sized = step.op == "resize" || step.op == "center_crop";
    if (sized) {
        const Json &size = table.at("size", where);
        if (size.is(Json::Kind::list)) {
            for (const Json &side : size.items()) {
                step.size.push_back(side.whole(place("size"), 1, max_side));
            }
        } else {
            step.size.push_back(size.whole(place("size"), 1, max_side));
        }
        const bool pair = step.size.size() == 2 && size.is(Json::Kind::list);
        if (!pair && (step.op == "center_crop" || size.is(Json::Kind::list))) {
            Json::wrong(place("size"), "[height, width]");
        }
    }
    if (step.op == "tokenize") {
        step.file = table.at("file", where).text(place("file"));
        if (const Json *found = get("max_length")) {
            step.max_length = found->whole(place("max_length"), 2, max_side);
        }
    }
    if (step.op == "trim") {
        step.pad = table.at("pad", where).whole(place("pad"), 0, std::numeric_limits<std::int32_t>::max());
    }
    const auto one_of = [&](const char *key, std::string &into, const std::vector<std::string> &allowed) {
        if (const Json *found = get(key)) {
            into = found->text(place(key));
        }
        if (std::find(allowed.begin(), allowed.end(), into) == allowed.end()) {
            Json::wrong(place(key), "one of its known values");
        }
    };
    std::string alpha = "black";
    one_of("alpha", alpha, {"black", "white"});
    step.white = alpha == "white";
    one_of("filter", step.filter, {"nearest", "bilinear", "bicubic"});
    one_of("to", step.to, {"CHW", "HWC", "flat"});
    if (const Json *found = get("antialias")) {
        step.antialias = found->boolean(place("antialias"));
    }
    const auto real = [&](const char *key, double &into) {
        if (const Json *found = get(key)) {
            into = found->number(place(key));
        }
    };
    real("factor", step.factor);
    real("temperature", step.temperature);
    real("value", step.value);
    if (const Json *found = get("mean")) {
        step.mean = numbers_of(*found, place("mean"));
    }
    if (const Json *found = get("std")) {
        step.std = numbers_of(*found, place("std"));
    }
    const auto representable = [](double value) {
        return std::fabs(value) <= double(std::numeric_limits<float>::max());
    };
    if (step.temperature <= 0 || std::count(step.std.begin(), step.std.end(), 0.0) > 0 || !representable(step.factor) ||
        !std::all_of(step.mean.begin(), step.mean.end(), representable) ||
        !std::all_of(step.std.begin(), step.std.end(), representable)) {
        Json::wrong(where, "within its range");
    }
    return step;
}

inline std::vector<Step> steps_of(const Json &manifest, const std::string &side,
                                  const std::vector<std::string> &known) {
    std::vector<Step> steps;
    for (const Json &item : manifest.at(side, "").list(side).items()) {
        steps.push_back(step_of(item, side + "[" + std::to_string(steps.size()) + "]", known));
    }
    for (std::size_t i = 1; i < steps.size(); i++) {
        if (steps[i].op == "decode" || (is_spatial(steps[i]) && !is_spatial(steps[i - 1]))) {
            Json::wrong(side, "in order: decode, then steps on one sample, then scale, normalize and layout");
        }
    }
    for (std::size_t i = 0; i < steps.size(); i++) {
        const bool for_texts = steps[i].op == "tokenize" || steps[i].op == "trim";
        if (for_texts != reads_texts(steps) || (i > 0 && steps[i].op == "tokenize")) {
            Json::wrong(side, "tokenize, then trim, where texts are read, and neither where they are not");
        }
    }
    return steps;
}

inline std::vector<Tensor> tensors_of(const Json &manifest, const std::string &side) {
    std::vector<Tensor> result;
    for (const Json &item : manifest.at(side, "").list(side).items()) {
        const std::string where = side + "[" + std::to_string(result.size()) + "]";
        Tensor tensor;
        tensor.name = item.at("name", where).text(where + ".name");
        tensor.dtype = item.at("dtype", where).text(where + ".dtype");
        for (const Json &axis : item.at("shape", where).list(where + ".shape").items()) {
            tensor.shape.push_back(axis.is(Json::Kind::text) ? 0 : axis.whole(where + ".shape", 1, max_numbers));
        }
        if (tensor.name.empty() || tensor.shape.empty()) {
            Json::wrong(where, "a tensor with a name and a shape");
        }
        result.push_back(tensor);
    }
    if (result.empty()) {
        Json::wrong(side, "a list with at least one tensor");
    }
    return result;
}

// The checked manifest in the text of a bundle.json. Throws Error that names the field.
inline Manifest parse_manifest(const std::string &text) {
    const Json json = Json::parse(text);
    const Json &version = json.at("version", "");
    if (version.is(Json::Kind::number) && version.number("version") > 1) {
        throw Error("the bundle has a newer version than 1, which is what this reader knows; get a newer edgekd.hpp");
    }
    version.whole("version", 1, 1);
    Manifest result;
    result.name = json.at("name", "").text("name");
    result.task = json.at("task", "").text("task");
    static const std::vector<std::string> tasks = {"classification", "multilabel", "regression", "embedding"};
    if (std::find(tasks.begin(), tasks.end(), result.task) == tasks.end()) {
        Json::wrong("task", "one of classification, multilabel, regression, embedding");
    }
    for (const Json &label : json.at("labels", "").list("labels").items()) {
        result.labels.push_back(label.text("labels"));
    }
    result.preprocess = steps_of(
        json, "preprocess",
        {"decode", "to_rgb", "to_grey", "resize", "center_crop", "scale", "normalize", "layout", "tokenize", "trim"});
    result.postprocess = steps_of(json, "postprocess", {"softmax", "sigmoid", "denormalize", "threshold", "top_k"});
    result.inputs = tensors_of(json, "inputs");
    result.outputs = tensors_of(json, "outputs");
    const Json &files = json.at("files", "").table("files");
    for (std::size_t i = 0; i < files.keys().size(); i++) {
        const std::string &name = files.keys()[i];
        if (!is_safe(name) || name == "bundle.json" || name == "bundle.json.sig") {
            throw Error("bundle.json: files names '" + name +
                        "', which is no file inside the bundle; get it from somewhere else");
        }
        const std::string where = "files['" + name + "']";
        File file{files.items()[i].at("sha256", where).text(where + ".sha256"),
                  files.items()[i].at("size_bytes", where).whole(where + ".size_bytes", 0, max_file)};
        if (file.sha256.size() != 64 || file.sha256.find_first_not_of("0123456789abcdef") != std::string::npos) {
            Json::wrong(where + ".sha256", "64 hexadecimal digits");
        }
        result.files[name] = file;
    }
    const auto listed = [&](const Json &value, const std::string &where) {
        if (result.files.count(value.text(where)) == 0) {
            Json::wrong(where, "a file that 'files' lists");
        }
        return value.text(where);
    };
    if (reads_texts(result.preprocess) && result.files.count(result.preprocess.front().file) == 0) {
        Json::wrong("preprocess[0].file", "a file that 'files' lists");
    }
    const Json &variants = json.at("variants", "").table("variants");
    for (std::size_t i = 0; i < variants.keys().size(); i++) {
        const std::string &name = variants.keys()[i], where = "variants['" + name + "']";
        Variant variant;
        variant.graph =
            listed(variants.items()[i].at("graphs", where).at("main", where + ".graphs"), where + ".graphs.main");
        if (const Json *told = variants.items()[i].find("tolerance")) {
            const auto limit = [&](const char *key, double &into) {
                if (const Json *found = told->table(where + ".tolerance").find(key)) {
                    into = found->number(where + ".tolerance");
                }
            };
            limit("abs", variant.abs);
            limit("rel", variant.rel);
            limit("label_agreement", variant.label_agreement);
        }
        result.variants[name] = variant;
        result.variant_names.push_back(name);
    }
    if (result.variants.empty()) {
        Json::wrong("variants", "a table with at least one variant");
    }
    if (const Json *defaults = json.find("default")) {
        for (std::size_t i = 0; i < defaults->table("default").keys().size(); i++) {
            const std::string &name = defaults->items()[i].text("default");
            if (result.variants.count(name) == 0) {
                Json::wrong("default", "a table of variants that are there");
            }
            result.defaults.emplace_back(defaults->keys()[i], name);
        }
    }
    const Json &golden = json.at("golden", "");
    result.golden = listed(golden.at("file", "golden"), "golden.file");
    const Json &outputs = golden.at("outputs", "golden").table("golden.outputs");
    for (std::size_t i = 0; i < outputs.keys().size(); i++) {
        const auto found = result.variants.find(outputs.keys()[i]);
        if (found == result.variants.end()) {
            Json::wrong("golden.outputs", "a table of variants that are there");
        }
        for (const Json &name : outputs.items()[i].list("golden.outputs").items()) {
            found->second.golden.push_back(name.text("golden.outputs"));
        }
    }
    return result;
}

// ---- the bundle ---------------------------------------------------------------------------------------------------

class Bundle {
  public:
    explicit Bundle(const std::filesystem::path &path) : path_(path) {
        namespace fs = std::filesystem;
        std::error_code problem;
        const fs::file_status status = fs::status(path, problem);
        if (fs::is_regular_file(status)) {
            std::string data = read_file(path, max_file);
            if (data.compare(0, 2, "PK") != 0) {
                throw Error(path.string() +
                            " is no bundle: expected a folder or a zip with a bundle.json; check the path");
            }
            zip_.emplace(std::move(data), path.string());
        } else if (!fs::is_directory(status)) {  // a pipe would never end
            throw Error("no bundle at " + path.string() + "; check the path");
        }
        manifest_ = parse_manifest(load("bundle.json", max_manifest));
    }

    const Manifest &manifest() const { return manifest_; }

    // The file `name`, which the manifest must list in this size and with this hash.
    std::string read(const std::string &name) const {
        const auto record = manifest_.files.find(name);
        if (record == manifest_.files.end()) {
            throw Error("bundle.json does not list '" + name + "'" + fresh);
        }
        std::string data = load(name, record->second.size);
        if (data.size() != record->second.size || sha256(data) != record->second.sha256) {
            throw Error(name + " in " + path_.string() + " was changed after the bundle was written" + fresh);
        }
        return data;
    }

    // "raw", "input.NAME", "output.VARIANT.NAME"
    std::map<std::string, Array> golden() const {
        const Zip archive(read(manifest_.golden), manifest_.golden);
        std::map<std::string, Array> arrays;
        for (const std::string &name : archive.names()) {
            const std::size_t end =
                name.size() > 4 && name.compare(name.size() - 4, 4, ".npy") == 0 ? name.size() - 4 : name.size();
            arrays[name.substr(0, end)] = parse_npy(archive.read(name), name + " in " + manifest_.golden);
        }
        return arrays;
    }

    // The variant that the bundle names for a kind of CPU: the exact kind, else the longest pattern that fits.
    std::string default_variant(const std::string &kind) const {
        const std::pair<std::string, std::string> *best = nullptr;
        for (const auto &choice : manifest_.defaults) {
            if (choice.first == kind) {
                return choice.second;
            }
            if (matches(choice.first, kind) && (best == nullptr || choice.first.size() > best->first.size())) {
                best = &choice;
            }
        }
        if (best != nullptr) {
            return best->second;
        }
        return manifest_.variants.count("float32") > 0 ? "float32" : manifest_.variant_names.front();
    }

    // Whether a text fits a pattern with `*`.
    static bool matches(const std::string &pattern, const std::string &text) {
        std::size_t p = 0, t = 0, star = std::string::npos, from = 0;
        while (t < text.size()) {
            if (p < pattern.size() && pattern[p] == '*') {
                star = p++;
                from = t;
            } else if (p < pattern.size() && pattern[p] == text[t]) {
                p++;
                t++;
            } else if (star != std::string::npos) {
                p = star + 1;
                t = ++from;
            } else {
                return false;
            }
        }
        return pattern.find_first_not_of('*', p) == std::string::npos;
    }

  private:
    std::string load(const std::string &name, std::size_t limit) const {
        namespace fs = std::filesystem;
        if (zip_.has_value()) {
            const std::optional<std::size_t> size = zip_->size(name);
            if (size.has_value() && *size > limit) {
                throw Error(name + " is longer than " + std::to_string(limit) + " bytes" + fresh);
            }
            return zip_->read(name);
        }
        fs::path place = path_;
        std::error_code problem;
        for (const fs::path &part : fs::path(name)) {
            place /= part;
            if (fs::is_symlink(fs::symlink_status(place, problem))) {
                throw Error(name + " is (or lies behind) a symbolic link, expected a plain file" + fresh);
            }
        }
        if (!fs::is_regular_file(fs::status(place, problem))) {
            throw Error(name + " is missing in " + path_.string() + fresh);
        }
        return read_file(place, limit);
    }

    std::filesystem::path path_;
    std::optional<Zip> zip_;
    Manifest manifest_;
};

// "x86_64-vnni", "x86_64-avx512", "x86_64-avx2", "x86_64", "aarch64", ...: the kinds that a bundle's `default` names.
inline std::string cpu_kind() {
#if defined(__aarch64__) || defined(_M_ARM64)
    return "aarch64";
#elif defined(__arm__) || defined(_M_ARM)
    return "armv7l";
#elif defined(__x86_64__) || defined(_M_X64)
    std::ifstream file("/proc/cpuinfo");
    std::string line;
    while (std::getline(file, line) && line.compare(0, 5, "flags") != 0) {
    }
    const std::string flags = line + " ";
    const auto has = [&](const char *flag) { return flags.find(std::string(" ") + flag + " ") != std::string::npos; };
    if (has("avx512_vnni") || has("avx_vnni")) {
        return "x86_64-vnni";
    }
    return has("avx512f") ? "x86_64-avx512" : has("avx2") ? "x86_64-avx2" : "x86_64";
#else
    return "unknown";
#endif
}

inline std::size_t available_cores() {
#ifdef __linux__
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
        return static_cast<std::size_t>(CPU_COUNT(&allowed));
    }
#endif
    return std::max(1U, std::thread::hardware_concurrency());
}

// ---- preprocessing: what training did, number for number ----------------------------------------------------------

// For each of `size` pixels the first source pixel and the weights of it and those after it: Pillow's filters.
struct Taps {
    std::vector<std::size_t> first;
    std::vector<std::vector<double>> weights;
};

inline Taps taps_of(std::size_t old, std::size_t size, const std::string &filter, bool antialias) {
    const double scale = double(old) / double(size), stretch = antialias ? std::max(scale, 1.0) : 1.0;
    const double support = (filter == "bicubic" ? 2.0 : 1.0) * stretch;
    const auto kernel = [&](double x) {
        x = std::fabs(x);
        if (filter == "bilinear") {
            return std::max(1.0 - x, 0.0);
        }
        return x < 1.0 ? (1.5 * x - 2.5) * x * x + 1.0 : x < 2.0 ? (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5 : 0.0;
    };
    Taps taps;
    for (std::size_t i = 0; i < size; i++) {
        const double centre = (double(i) + 0.5) * scale;
        const auto first = static_cast<std::size_t>(std::max(std::trunc(centre - support + 0.5), 0.0));
        const auto last = static_cast<std::size_t>(std::min(std::trunc(centre + support + 0.5), double(old)));
        std::vector<double> weights;
        double total = 0;
        for (std::size_t at = first; at < last; at++) {
            weights.push_back(kernel((double(at - first) + double(first) - centre + 0.5) / stretch));
            total += weights.back();
        }
        for (double &weight : weights) {
            weight /= total;
        }
        taps.first.push_back(first);
        taps.weights.push_back(std::move(weights));
    }
    return taps;
}

// One axis of an image (outer, old, inner) at another size: bytes in Pillow's fixed point, floats in double.
template <typename T>
std::vector<T> resample(const std::vector<T> &image, std::size_t outer, std::size_t old, std::size_t inner,
                        std::size_t size, const std::string &filter, bool antialias) {
    if (old == size) {
        return image;
    }
    const Taps taps = taps_of(old, size, filter, antialias);
    std::vector<T> result(outer * size * inner);
    std::vector<std::int32_t> fixed;
    std::vector<std::int32_t> sums(inner);
    std::vector<double> exact(inner);
    for (std::size_t i = 0; i < size; i++) {
        fixed.clear();
        for (const double weight : taps.weights[i]) {
            fixed.push_back(static_cast<std::int32_t>(std::trunc(weight * (1 << 22) + std::copysign(0.5, weight))));
        }
        for (std::size_t o = 0; o < outer; o++) {
            const T *from = image.data() + (o * old + taps.first[i]) * inner;
            T *into = result.data() + (o * size + i) * inner;
            if constexpr (std::is_same_v<T, std::uint8_t>) {
                std::fill(sums.begin(), sums.end(), 1 << 21);
                for (const std::int32_t weight : fixed) {
                    for (std::size_t c = 0; c < inner; c++) {
                        sums[c] += weight * std::int32_t(from[c]);
                    }
                    from += inner;
                }
                for (std::size_t c = 0; c < inner; c++) {
                    into[c] = static_cast<std::uint8_t>(std::clamp(sums[c] >> 22, 0, 255));
                }
            } else {
                std::fill(exact.begin(), exact.end(), 0.0);
                for (const double weight : taps.weights[i]) {
                    for (std::size_t c = 0; c < inner; c++) {
                        exact[c] += double(from[c]) * weight;
                    }
                    from += inner;
                }
                for (std::size_t c = 0; c < inner; c++) {
                    into[c] = static_cast<float>(exact[c]);
                }
            }
        }
    }
    return result;
}

// The source pixel of each of `size` pixels, positions summed step by step as Pillow does.
inline std::vector<std::size_t> nearest(std::size_t old, std::size_t size) {
    const double step = double(old) / double(size);
    std::vector<std::size_t> places;
    double at = step / 2;
    for (std::size_t i = 0; i < size; i++, at += step) {
        places.push_back(std::min(static_cast<std::size_t>(at), old - 1));
    }
    return places;
}

template <typename T>
struct Image {
    std::size_t height, width, channels;
    std::vector<T> pixels;
};

template <typename T>
Image<T> pick(const Image<T> &image, const std::vector<std::size_t> &rows, const std::vector<std::size_t> &columns) {
    Image<T> result{rows.size(), columns.size(), image.channels, {}};
    result.pixels.reserve(count_of({rows.size(), columns.size(), image.channels}));
    for (const std::size_t row : rows) {
        for (const std::size_t column : columns) {
            const auto from =
                image.pixels.begin() + static_cast<std::ptrdiff_t>((row * image.width + column) * image.channels);
            result.pixels.insert(result.pixels.end(), from, from + static_cast<std::ptrdiff_t>(image.channels));
        }
    }
    return result;
}

template <typename T>
Image<T> resized(const Image<T> &image, const Step &step) {
    std::size_t height = step.size[0], width = step.size.back();
    if (step.size.size() == 1) {
        const std::size_t shorter = std::min(image.height, image.width), longer = std::max(image.height, image.width);
        const std::size_t other = longer > max_numbers ? max_side + 1 : step.size[0] * longer / shorter;
        if (other > max_side) {
            throw Error("resize: the longer side would have more than " + std::to_string(max_side) +
                        " pixels; crop the image first");
        }
        height = image.height <= image.width ? step.size[0] : other;
        width = image.height <= image.width ? other : step.size[0];
    }
    if (step.filter == "nearest") {
        return pick(image, nearest(image.height, height), nearest(image.width, width));
    }
    count_of({image.height, width, image.channels});
    count_of({height, width, image.channels});
    auto narrow = resample(image.pixels, image.height, image.width, image.channels, width, step.filter, step.antialias);
    return {height, width, image.channels,
            resample(narrow, 1, image.height, width * image.channels, height, step.filter, step.antialias)};
}

template <typename T>
Image<T> spatial(const Step &step, Image<T> image) {
    const std::size_t count = image.height * image.width;
    if (step.op == "decode") {
        if (!std::is_same_v<T, std::uint8_t> || (image.channels != 2 && image.channels != 4)) {
            return image;
        }
        const std::size_t colours = image.channels - 1;  // the last channel is transparency; Pillow's whole numbers
        Image<T> result{image.height, image.width, colours, std::vector<T>(count * colours)};
        for (std::size_t i = 0; i < count; i++) {
            const int alpha = int(image.pixels[i * image.channels + colours]);
            for (std::size_t c = 0; c < colours; c++) {
                const int colour = int(image.pixels[i * image.channels + c]);
                const int total = colour * alpha * 128 + (step.white ? 255 : 0) * (255 - alpha) * 128 + 0x80 * 128;
                result.pixels[i * colours + c] = static_cast<T>((((total >> 8) + total) >> 8) >> 7);
            }
        }
        return result;
    }
    if (step.op == "resize") {
        return resized(image, step);
    }
    if (step.op == "center_crop") {
        if (image.height < step.size[0] || image.width < step.size[1]) {
            throw Error("center_crop: an image of " + std::to_string(image.height) + " x " +
                        std::to_string(image.width) + " is smaller than " + std::to_string(step.size[0]) + " x " +
                        std::to_string(step.size[1]) + "; give a larger one");
        }
        const auto places = [](std::size_t old, std::size_t size) {
            const std::size_t rest = old - size, half = rest / 2;
            std::vector<std::size_t> result(size);
            std::iota(result.begin(), result.end(),
                      rest % 2 == 1 && half % 2 == 1 ? half + 1 : half);  // halves to even
            return result;
        };
        return pick(image, places(image.height, step.size[0]), places(image.width, step.size[1]));
    }
    if (image.channels != 1 && image.channels != 3) {
        throw Error(step.op + ": found " + std::to_string(image.channels) + " channels, expected 1 or 3");
    }
    const std::size_t wanted = step.op == "to_rgb" ? 3 : 1;
    if (image.channels == wanted) {
        return image;
    }
    Image<T> result{image.height, image.width, wanted, std::vector<T>(count * wanted)};
    for (std::size_t i = 0; i < count; i++) {
        if (wanted == 3) {
            std::fill_n(result.pixels.begin() + static_cast<std::ptrdiff_t>(3 * i), 3, image.pixels[i]);
            continue;
        }
        const T *rgb = image.pixels.data() + 3 * i;
        if constexpr (std::is_same_v<T, std::uint8_t>) {
            result.pixels[i] = static_cast<T>((19595U * rgb[0] + 38470U * rgb[1] + 7471U * rgb[2] + 0x8000U) >> 16);
        } else {
            result.pixels[i] = static_cast<T>(double(rgb[0]) * (19595 / 65536.0) + double(rgb[1]) * (38470 / 65536.0) +
                                              double(rgb[2]) * (7471 / 65536.0));
        }
    }
    return result;
}

// One sample through decode (of an array), to_rgb, to_grey, resize and center_crop; bytes stay bytes.
inline Array prepare(const std::vector<Step> &steps, const Array &sample) {
    if (sample.shape.empty() || sample.count() == 0) {
        throw Error("found an array of shape " + text_of(sample.shape) +
                    ", expected at least one number on at least one axis");
    }
    if (steps.empty() || !is_spatial(steps.front())) {
        return sample;
    }
    if (sample.shape.size() != 2 && sample.shape.size() != 3) {
        throw Error("found an array of shape " + text_of(sample.shape) + ", expected an image (H, W) or (H, W, C)");
    }
    const std::size_t channels = sample.shape.size() == 2 ? 1 : sample.shape[2];
    const auto run = [&](const auto &pixels) {
        using T = typename std::decay_t<decltype(pixels)>::value_type;
        Image<T> image{sample.shape[0], sample.shape[1], channels, pixels};
        for (const Step &step : steps) {
            if (is_spatial(step)) {
                image = spatial(step, std::move(image));
            }
        }
        return Array({image.height, image.width, image.channels}, std::move(image.pixels));
    };
    return std::visit(run, sample.data);
}

// A batch (N, ...) through scale, normalize and layout, or of ids through trim: float32, which holds every id.
inline Array arithmetic(const std::vector<Step> &steps, const Array &batch) {
    Shape shape = batch.shape;
    Floats values = batch.as_floats();
    const bool channels = std::any_of(steps.begin(), steps.end(),
                                      [](const Step &step) { return step.op == "layout" && step.to != "flat"; });
    if (shape.size() == 3 && channels) {
        shape.push_back(1);
    }
    for (const Step &step : steps) {
        if (step.op == "scale") {
            const auto factor = static_cast<float>(step.factor);
            for (float &value : values) {
                value *= factor;
            }
        } else if (step.op == "normalize") {
            const std::size_t last = shape.back();
            if ((step.mean.size() != 1 && step.mean.size() != last) ||
                (step.std.size() != 1 && step.std.size() != last)) {
                throw Error("normalize: " + std::to_string(std::max(step.mean.size(), step.std.size())) +
                            " figures for a last axis of " + std::to_string(last) + "; give a sample that has as many");
            }
            const Floats mean(step.mean.begin(), step.mean.end()), std(step.std.begin(), step.std.end());
            for (std::size_t i = 0; i < values.size(); i++) {
                values[i] = (values[i] - mean[mean.size() == 1 ? 0 : i % last]) / std[std.size() == 1 ? 0 : i % last];
            }
        } else if (step.op == "trim") {  // without the columns at the end that are padding in every row; one stays
            if (shape.size() != 2 || shape[1] == 0) {
                throw Error("trim: found a batch of shape " + text_of(shape) + ", expected ids (N, T)");
            }
            const std::size_t width = shape[1];
            std::size_t kept = 1;
            for (std::size_t i = 0; i < values.size(); i++) {
                kept = values[i] == float(step.pad) ? kept : std::max(kept, i % width + 1);
            }
            Floats shorter;
            for (std::size_t row = 0; row < shape[0]; row++) {
                const auto from = values.begin() + static_cast<std::ptrdiff_t>(row * width);
                shorter.insert(shorter.end(), from, from + static_cast<std::ptrdiff_t>(kept));
            }
            values = std::move(shorter);
            shape[1] = kept;
        } else if (step.op == "layout" && step.to == "flat") {
            shape = {shape[0], count_of(Shape(shape.begin() + 1, shape.end()))};
        } else if (step.op == "layout") {
            if (shape.size() != 4) {
                throw Error("layout: found a batch of shape " + text_of(shape) + ", expected images (N, H, W, C)");
            }
            if (step.to == "CHW") {
                const std::size_t inner = shape[1] * shape[2], depth = shape[3];
                Floats moved(values.size());
                for (std::size_t n = 0; n < shape[0]; n++) {
                    for (std::size_t i = 0; i < inner; i++) {
                        for (std::size_t c = 0; c < depth; c++) {
                            moved[(n * depth + c) * inner + i] = values[(n * inner + i) * depth + c];
                        }
                    }
                }
                values = std::move(moved);
                shape = {shape[0], depth, shape[1], shape[2]};
            }
        }
    }
    return Array(std::move(shape), std::move(values));
}

// The graph's outputs (N, D) as scores: double inside, float out.
inline Floats postprocess(const std::vector<Step> &steps, const Floats &outputs, std::size_t width) {
    std::vector<double> values(outputs.begin(), outputs.end());
    for (const Step &step : steps) {
        if (step.op == "softmax") {
            for (std::size_t at = 0; at < values.size(); at += width) {
                const auto first = values.begin() + static_cast<std::ptrdiff_t>(at),
                           last = first + static_cast<std::ptrdiff_t>(width);
                const double largest = *std::max_element(first, last) / step.temperature;
                double total = 0;
                std::for_each(first, last,
                              [&](double &value) { total += value = std::exp(value / step.temperature - largest); });
                std::for_each(first, last, [&](double &value) { value /= total; });
            }
        } else if (step.op == "sigmoid") {
            for (double &value : values) {
                value = 0.5 * (1.0 + std::tanh(0.5 * value));
            }
        } else if (step.op == "denormalize") {
            if ((step.mean.size() != 1 && step.mean.size() != width) ||
                (step.std.size() != 1 && step.std.size() != width)) {
                throw Error("denormalize: other figures than outputs" + std::string(fresh));
            }
            for (std::size_t i = 0; i < values.size(); i++) {
                values[i] = values[i] * step.std[step.std.size() == 1 ? 0 : i % width] +
                            step.mean[step.mean.size() == 1 ? 0 : i % width];
            }
        }
    }
    return Floats(values.begin(), values.end());
}

// ---- texts: a Hugging Face tokenizer.json of BERT's kind (WordPiece), id for id -----------------------------------

// Characters as Hugging Face's tokenizers sees them; the table is decoded once.
class Characters {
  public:
    enum Kind : unsigned { removed = 1, white = 2, chinese = 4, mark = 8, punctuation = 16 };

    static const Characters &all() {
        static const Characters table;
        return table;
    }

    // What a character is: the sum of its kinds.
    unsigned kinds(char32_t code) const { return code < ascii_.size() ? ascii_[code] : at(code).kinds; }

    // Canonical decomposition (NFD).
    std::u32string decomposed(const std::u32string &text) const {
        std::u32string result;
        std::size_t start = 0;  // of the marks at the end, which are put in order when something else comes
        const auto settle = [&] {
            std::stable_sort(result.begin() + static_cast<std::ptrdiff_t>(start), result.end(),
                             [&](char32_t a, char32_t b) { return at(a).order < at(b).order; });
        };
        const auto add = [&](char32_t code) {
            if (code < 0x300 || at(code).order == 0) {
                settle();
                start = result.size() + 1;
            }
            result += code;
        };
        for (const char32_t code : text) {
            std::u32string parts(1, code);  // the last one is decomposed next
            while (!parts.empty()) {
                const char32_t part = parts.back(), syllable = part - 0xAC00;
                parts.pop_back();
                const Pair *pair = part < 0xC0 ? nullptr : find(parts_, part);
                if (pair != nullptr) {
                    if (pair->second != 0) {
                        parts += pair->second;
                    }
                    parts += pair->first;
                } else if (part >= 0xAC00 && syllable < 11172) {  // Hangul
                    add(0x1100 + syllable / 588);
                    add(0x1161 + syllable % 588 / 28);
                    if (syllable % 28 != 0) {
                        add(0x11A7 + syllable % 28);
                    }
                } else {
                    add(part);
                }
            }
        }
        settle();
        return result;
    }

    // Lower case, each character for itself: no final sigma, no Turkish.
    std::u32string lowered(const std::u32string &text) const {
        std::u32string result;
        result.reserve(text.size());
        for (const char32_t code : text) {
            if (code == 0x130) {
                result += U"i\u0307";
                continue;
            }
            const Pair *pair = code < 0x80 ? nullptr : find(lower_, code);
            result += code >= 'A' && code <= 'Z' ? code + 32 : pair == nullptr ? code : pair->first;
        }
        return result;
    }

  private:
    struct Range {
        char32_t first;
        unsigned char kinds, order;  // order: the canonical combining class
    };
    struct Pair {
        char32_t code, first, second;
    };

    Characters() {
        const char *digit = table();
        const auto next = [&] {
            static const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
            std::uint32_t value = 0, bits = 32;
            for (unsigned shift = 0; bits >= 32; shift += 5) {
                bits = static_cast<std::uint32_t>(digits.find(*digit++));
                value += (bits & 31) << shift;
            }
            return value;
        };
        const auto moved = [&](char32_t from) {
            const std::uint32_t value = next();
            return value % 2 == 0 ? from + value / 2 : from - (value + 1) / 2;
        };
        std::map<char32_t, std::pair<int, int>> changes = {{0, {0, 0}}};  // where kinds and order change, and by what
        const auto change = [&](char32_t first, char32_t last, int kind, int order) {
            changes[first].first += kind;
            changes[first].second += order;
            changes[last + 1].first -= kind;
            changes[last + 1].second -= order;
        };
        for (const int kind : {removed, white, chinese, mark, punctuation}) {
            char32_t code = 0;
            for (std::uint32_t count = next(); count > 0; count--) {
                const char32_t first = code + next();
                code = first + next();
                change(first, code, kind, 0);
            }
        }
        Pair pair{0, 0, 0};
        for (std::uint32_t count = next(); count > 0; count--) {
            pair.code += next();
            pair.first = moved(pair.first);
            pair.second = moved(pair.second);
            parts_.push_back(pair);
        }
        char32_t code = 0;
        for (std::uint32_t count = next(); count > 0; count--) {
            const char32_t first = code + next();
            code = first + next();
            change(first, code, 0, static_cast<int>(next()));
        }
        code = 0;
        for (std::uint32_t count = next(); count > 0; count--) {
            code += next();
            const std::uint32_t steps = next(), stride = next() + 1;
            const char32_t to = moved(code);
            for (std::uint32_t step = 0; step <= steps; step++) {
                lower_.push_back({code + step * stride, to + step * stride, 0});
            }
        }
        std::sort(lower_.begin(), lower_.end(), [](const Pair &a, const Pair &b) { return a.code < b.code; });
        int kinds = 0, order = 0;
        for (const auto &[place, by] : changes) {
            kinds += by.first;
            order += by.second;
            ranges_.push_back({place, static_cast<unsigned char>(kinds), static_cast<unsigned char>(order)});
        }
        for (std::size_t i = 0; i < ascii_.size(); i++) {
            ascii_[i] = at(static_cast<char32_t>(i)).kinds;
        }
    }

    const Range &at(char32_t code) const {
        const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), code,
                                            [](char32_t wanted, const Range &range) { return wanted < range.first; });
        return *(after - 1);
    }
    static const Pair *find(const std::vector<Pair> &pairs, char32_t code) {
        const auto found = std::lower_bound(pairs.begin(), pairs.end(), code,
                                            [](const Pair &pair, char32_t wanted) { return pair.code < wanted; });
        return found == pairs.end() || found->code != code ? nullptr : &*found;
    }

    std::array<unsigned char, 128> ascii_{};
    std::vector<Range> ranges_;
    std::vector<Pair> parts_, lower_;

    static const char *table();
};

// The characters of a text in UTF-8. Throws Error where it is none: nobody guesses an encoding here.
inline std::u32string characters_of(const std::string &text) {
    std::u32string result;
    result.reserve(text.size());
    for (std::size_t at = 0; at < text.size();) {
        char32_t code = 0;
        const std::size_t length = utf8_at(text, at, code);
        if (length == 0) {
            throw Error("the text is not valid UTF-8 (byte " + std::to_string(at) + "); convert it first");
        }
        result += code;
        at += length;
    }
    if (result.size() > max_text) {
        throw Error("the text has " + std::to_string(result.size()) + " characters, expected at most " +
                    std::to_string(max_text) + "; pass a part of it");
    }
    return result;
}

// The ids of a text, without padding; whether it was longer than the model reads, and its end was not looked at.
struct Tokens {
    std::vector<std::int32_t> ids;
    bool truncated = false;
};

class Tokenizer {
  public:
    // Throws Error for what is no tokenizer.json, or one of another kind.
    explicit Tokenizer(const std::string &text) {
        const Json all = Json::parse(text, "tokenizer.json");
        table(all, "the file");
        const Json &model = table(get(all, "model"), "model");
        expect_type(model, "model", "WordPiece");
        expect_type(table(get(all, "pre_tokenizer"), "pre_tokenizer"), "pre_tokenizer", "BertPreTokenizer");
        read_normalizer(table(get(all, "normalizer"), "normalizer"));
        read_vocabulary(model);
        std::map<std::string, std::int32_t> added;
        read_added(get(all, "added_tokens"), added);
        read_template(get(all, "post_processor"));
        read_padding(get(all, "padding"), added);
    }
    Tokenizer(const Tokenizer &) = delete;  // the keys of its tables point into it
    Tokenizer &operator=(const Tokenizer &) = delete;

    // The id that fills up short texts.
    std::int32_t pad() const { return pad_; }
    // One more than the largest id.
    std::int32_t size() const { return size_; }

    // The ids of a text in UTF-8 with the tokenizer's special tokens around them, at most `max_length`: what is too
    // much at the end is cut off.
    Tokens encode(const std::string &text, std::size_t max_length) const {
        const std::size_t around = before_.size() + after_.size();
        if (max_length <= around) {
            throw Error("tokenize: max_length = " + std::to_string(max_length) +
                        " leaves no room beside the special tokens" + fresh);
        }
        const std::size_t room = max_length - around;
        std::vector<std::int32_t> ids;
        split(characters_of(text), raw_, ids, [&](const std::u32string &rest) {
            split(normalized(rest), normalized_, ids, [&](const std::u32string &piece) { words(piece, ids, room); });
        });
        Tokens result{before_, ids.size() > room};
        ids.resize(std::min(ids.size(), room));
        result.ids.insert(result.ids.end(), ids.begin(), ids.end());
        result.ids.insert(result.ids.end(), after_.begin(), after_.end());
        return result;
    }

  private:
    struct Added {
        std::u32string content;
        std::int32_t id;
        bool lstrip, rstrip;
    };
    // Added tokens by their first character, the longest first.
    using Finder = std::unordered_map<char32_t, std::vector<Added>>;
    using Ids = std::unordered_map<std::string_view, std::int32_t>;

    [[noreturn]] static void refuse(const std::string &found, const std::string &expected) {
        throw Error("tokenizer.json: " + found + ", expected " + expected +
                    ": distil with a WordPiece tokenizer, as BERT's, or run this student in Python, where tokenizers "
                    "reads all kinds");
    }
    static const Json &get(const Json &from, const std::string &key) {
        static const Json nothing;
        const Json *found = from.find(key);
        return found == nullptr ? nothing : *found;
    }
    static std::string shown(const Json &value) {
        const Json::Kind kind = value.kind();
        if (kind == Json::Kind::text) {
            const std::string &text = value.text("");
            return "\"" + (text.size() < 60 ? text : text.substr(0, 57) + "...") + "\"";
        }
        if (kind == Json::Kind::number) {
            std::ostringstream text;
            text.imbue(std::locale::classic());
            text << value.number("");
            return text.str();
        }
        return kind == Json::Kind::null      ? "missing"
               : kind == Json::Kind::boolean ? (value.boolean("") ? "true" : "false")
               : kind == Json::Kind::list    ? "a list"
                                             : "a table";
    }
    static const Json &of_kind(Json::Kind kind, const Json &value, const std::string &where, const char *expected) {
        if (!value.is(kind)) {
            refuse(where + " is " + shown(value), expected);
        }
        return value;
    }
    static const Json &table(const Json &value, const std::string &where) {
        return of_kind(Json::Kind::table, value, where, "a table");
    }
    static const std::vector<Json> &list(const Json &value, const std::string &where) {
        return of_kind(Json::Kind::list, value, where, "a list").items();
    }
    static const std::string &text_in(const Json &value, const std::string &where) {
        return of_kind(Json::Kind::text, value, where, "a text").text(where);
    }
    static bool flag(const Json &value, const std::string &where) {
        return of_kind(Json::Kind::boolean, value, where, "true or false").boolean(where);
    }
    static std::int32_t number(const Json &value, const std::string &where) {
        if (!value.is_whole(0, max_id)) {
            refuse(where + " is " + shown(value), "a whole number from 0 to " + std::to_string(max_id));
        }
        return static_cast<std::int32_t>(value.number(where));
    }
    static void expect_type(const Json &from, const std::string &where, const std::string &type) {
        const Json &found = get(from, "type");
        if (!found.is(Json::Kind::text) || found.text("") != type) {
            refuse(where + ".type is " + shown(found), "'" + type + "'");
        }
    }

    void read_normalizer(const Json &from) {
        expect_type(from, "normalizer", "BertNormalizer");
        clean_ = flag(get(from, "clean_text"), "normalizer.clean_text");
        apart_ = flag(get(from, "handle_chinese_chars"), "normalizer.handle_chinese_chars");
        lowercase_ = flag(get(from, "lowercase"), "normalizer.lowercase");
        const Json &strip = get(from, "strip_accents");
        strip_ = strip.is(Json::Kind::null) ? lowercase_ : flag(strip, "normalizer.strip_accents");
    }

    void read_vocabulary(const Json &model) {
        const Json &vocabulary = table(get(model, "vocab"), "model.vocab");
        const std::string &prefix =
            text_in(get(model, "continuing_subword_prefix"), "model.continuing_subword_prefix");
        longest_word_ = static_cast<std::size_t>(
            number(get(model, "max_input_chars_per_word"), "model.max_input_chars_per_word"));
        tokens_ = vocabulary.keys();
        for (std::size_t i = 0; i < tokens_.size(); i++) {
            const std::int32_t id = number(vocabulary.items()[i], "model.vocab['" + tokens_[i] + "']");
            vocabulary_[tokens_[i]] = id;
            size_ = std::max(size_, id + 1);
            if (tokens_[i].compare(0, prefix.size(), prefix) == 0) {
                following_[std::string_view(tokens_[i]).substr(prefix.size())] = id;
            }
            longest_ = std::max(longest_, tokens_[i].size());
        }
        const std::string &unknown = text_in(get(model, "unk_token"), "model.unk_token");
        const auto found = vocabulary_.find(unknown);
        if (found == vocabulary_.end()) {
            refuse("model.vocab['" + unknown + "'] is missing", "the id of the unknown token");
        }
        unknown_ = found->second;
    }

    void read_added(const Json &from, std::map<std::string, std::int32_t> &ids) {
        if (from.is(Json::Kind::null)) {
            return;
        }
        std::size_t next = vocabulary_.size(), count = 0;
        for (const Json &token : list(from, "added_tokens")) {
            const std::string where = "added_tokens[" + std::to_string(count++) + "]";
            const std::string &content = text_in(get(table(token, where), "content"), where + ".content");
            const auto known = vocabulary_.find(content);
            const auto again = ids.find(content);
            const std::int32_t id = known != vocabulary_.end() ? known->second
                                    : again != ids.end()       ? again->second
                                                               : static_cast<std::int32_t>(next++);
            const Json &given = get(token, "id");
            if (number(given, where + ".id") != id) {
                refuse(where + ".id is " + shown(given), std::to_string(id) + ", as tokenizers numbers it");
            }
            ids[content] = id;
            size_ = std::max(size_, id + 1);
            if (flag(get(token, "single_word"), where + ".single_word")) {
                refuse(where + ".single_word is true", "false");
            }
            const bool late = flag(get(token, "normalized"), where + ".normalized");
            const std::u32string characters = characters_of(content);
            Added added{late ? normalized(characters) : characters, id, flag(get(token, "lstrip"), where + ".lstrip"),
                        flag(get(token, "rstrip"), where + ".rstrip")};
            if (added.content.empty()) {
                refuse(where + " is an empty token", "a text");
            }
            std::vector<Added> &alike = (late ? normalized_ : raw_)[added.content[0]];
            const auto same = std::find_if(alike.begin(), alike.end(),
                                           [&](const Added &other) { return other.content == added.content; });
            if (same != alike.end()) {
                *same = added;
                continue;
            }
            alike.insert(std::find_if(alike.begin(), alike.end(),
                                      [&](const Added &other) { return other.content.size() < added.content.size(); }),
                         added);
        }
    }

    // The special tokens before and after a text.
    void read_template(const Json &from) {
        if (from.is(Json::Kind::null)) {
            return;
        }
        const Json &type = get(table(from, "post_processor"), "type");
        if (type.is(Json::Kind::text) && type.text("") == "BertProcessing") {
            for (const auto &[key, into] : {std::make_pair("cls", &before_), std::make_pair("sep", &after_)}) {
                const std::string where = std::string("post_processor.") + key;
                const std::vector<Json> &pair = list(get(from, key), where);
                into->push_back(number(pair.size() == 2 ? pair[1] : Json(), where + "[1]"));
            }
            return;
        }
        if (!type.is(Json::Kind::text) || type.text("") != "TemplateProcessing") {
            refuse("post_processor.type is " + shown(type), "'TemplateProcessing' or 'BertProcessing'");
        }
        const Json &special = table(get(from, "special_tokens"), "post_processor.special_tokens");
        int seen = 0;
        for (const Json &piece : list(get(from, "single"), "post_processor.single")) {
            const Json &sequence = get(table(piece, "post_processor.single"), "Sequence");
            if (!sequence.is(Json::Kind::null)) {
                const Json &name = get(table(sequence, "post_processor.single"), "id");
                seen += name.is(Json::Kind::text) && name.text("") == "A" ? 1 : 2;
                continue;
            }
            const Json &token = table(get(piece, "SpecialToken"), "post_processor.single");
            const std::string &name = text_in(get(token, "id"), "post_processor.single");
            const std::string where = "post_processor.special_tokens['" + name + "']";
            for (const Json &id : list(get(table(get(special, name), where), "ids"), where + ".ids")) {
                (seen == 0 ? before_ : after_).push_back(number(id, where + ".ids"));
            }
        }
        if (seen != 1) {
            refuse("post_processor.single without one $A", "special tokens around one $A");
        }
    }

    void read_padding(const Json &from, const std::map<std::string, std::int32_t> &added) {
        std::vector<std::string> names = {"[PAD]", "<pad>", "<|pad|>", "<|endoftext|>"};
        const Json &named = from.is(Json::Kind::null) ? from : get(table(from, "padding"), "pad_token");
        if (named.is(Json::Kind::text)) {
            names.insert(names.begin(), named.text(""));
        }
        for (const std::string &name : names) {
            const auto found = vocabulary_.find(name);
            const auto other = added.find(name);
            if (found != vocabulary_.end() || other != added.end()) {
                pad_ = found != vocabulary_.end() ? found->second : other->second;
                return;
            }
        }
        refuse("the padding is missing",
               "a table 'padding', or one of the tokens [PAD], <pad>, <|pad|>, <|endoftext|>");
    }

    // What lies between added tokens goes to `other`, the tokens themselves to `ids`.
    template <typename Other>
    static void split(const std::u32string &text, const Finder &wanted, std::vector<std::int32_t> &ids,
                      const Other &other) {
        const auto white = [&](std::size_t at) { return (Characters::all().kinds(text[at]) & Characters::white) != 0; };
        std::size_t done = 0;
        for (std::size_t at = 0; at < text.size() && !wanted.empty();) {
            const Added *token = match(text, at, wanted);
            if (token == nullptr) {
                at++;
                continue;
            }
            std::size_t start = at, end = at + token->content.size();
            at = end;
            while (token->lstrip && start > done && white(start - 1)) {
                start--;
            }
            while (token->rstrip && end < text.size() && white(end)) {
                end++;
            }
            if (start > done) {
                other(text.substr(done, start - done));
            }
            ids.push_back(token->id);
            done = end;
        }
        if (done == 0 && !text.empty()) {
            other(text);
        } else if (done < text.size()) {
            other(text.substr(done));
        }
    }
    static const Added *match(const std::u32string &text, std::size_t at, const Finder &wanted) {
        const auto alike = wanted.find(text[at]);
        if (alike != wanted.end()) {
            for (const Added &token : alike->second) {
                if (text.compare(at, token.content.size(), token.content) == 0) {
                    return &token;
                }
            }
        }
        return nullptr;
    }

    // BERT's normalizer: cleaned, without accents, in lower case.
    std::u32string normalized(const std::u32string &text) const {
        const Characters &characters = Characters::all();
        std::u32string result;
        result.reserve(text.size());
        for (const char32_t code : text) {
            const unsigned kinds = characters.kinds(code);
            if (clean_ && (kinds & Characters::removed) != 0) {
                continue;
            }
            if (apart_ && (kinds & Characters::chinese) != 0) {
                result += {U' ', code, U' '};
            } else {
                result += clean_ && (kinds & Characters::white) != 0 ? U' ' : code;
            }
        }
        const auto is_ascii = [](char32_t code) { return code < 0x80; };
        if (strip_ && !std::all_of(result.begin(), result.end(), is_ascii)) {
            result = characters.decomposed(result);
            const auto is_mark = [&](char32_t code) { return (characters.kinds(code) & Characters::mark) != 0; };
            result.erase(std::remove_if(result.begin(), result.end(), is_mark), result.end());
        }
        return lowercase_ ? characters.lowered(result) : result;
    }

    // The words and punctuation marks of a normalized text, as ids; it stops when there are more than `room`.
    void words(const std::u32string &text, std::vector<std::int32_t> &ids, std::size_t room) const {
        std::string word;
        std::size_t length = 0;
        const auto finish = [&] {
            if (length > 0) {
                pieces(word, length, ids);
            }
            word.clear();
            length = 0;
        };
        for (const char32_t code : text) {
            const unsigned kinds = Characters::all().kinds(code);
            if ((kinds & (Characters::white | Characters::punctuation)) != 0) {
                finish();
            }
            if ((kinds & Characters::white) == 0) {
                append_utf8(word, code);
                length++;
            }
            if ((kinds & Characters::punctuation) != 0) {
                finish();
            }
            if (ids.size() > room) {
                return;
            }
        }
        finish();
    }

    // One word as the longest tokens from its front; unknown as a whole where one is missing.
    void pieces(const std::string &word, std::size_t length, std::vector<std::int32_t> &ids) const {
        const std::size_t before = ids.size();
        for (std::size_t start = 0; start < word.size() && length <= longest_word_;) {
            const Ids &known = start == 0 ? vocabulary_ : following_;
            std::size_t size = std::min(word.size() - start, longest_);
            auto found = known.end();
            for (; size > 0 && found == known.end(); size -= found == known.end() ? 1 : 0) {
                found = known.find(std::string_view(word).substr(start, size));
            }
            if (found == known.end()) {
                break;
            }
            ids.push_back(found->second);
            start += size;
            if (start == word.size()) {
                return;
            }
        }
        ids.resize(before);
        ids.push_back(unknown_);
    }

    static constexpr std::size_t max_id = (std::size_t(1) << 24) - 1;  // float32 holds every one
    bool clean_ = true, apart_ = true, strip_ = true, lowercase_ = true;
    std::vector<std::string> tokens_;
    Ids vocabulary_, following_;  // what may follow within a word is without its prefix
    std::size_t longest_ = 0, longest_word_ = 100;
    std::int32_t unknown_ = 0, pad_ = 0, size_ = 0;
    Finder raw_, normalized_;
    std::vector<std::int32_t> before_, after_;
};

// What Hugging Face's tokenizers takes each character for; unicode_tables.py of edgekd says how to read it.
inline const char *Characters::table() {
    // generated by unicode_tables.py
    static const char *const text =
        "ZAIDBCRgDgBOAzqBFXAhGAyBA/nEA9/BEbEyBECJx8vB/nGgwBA6HCCAgmEAj/qBDwmFHn0rYAf/Ch8/B9//BD9//BKJETAlDAbAgvFAgs"
        "CKeBGAwBAh9DAHggN/tGhC/vUhoW/PhohC/2pBhB/oEhIvsFxqK/Q3IgY/BDADqB0IEqIsBCACBCBCApCKxBURAmDGDFDBCDkBAfa8CK7B"
        "IjBDCICCCEsBCoEf4BACAFHFAEGLBeA7BAFDJAVBeB6BAFBFBDCEAfBEAMB6BAFECBFAVBeA7BADACDJAJAMBfA+BANAzBA+BCGBDDIBMB"
        "eA7BADAHAGBVBeAgCDJAVBnDAICCA7CADGNHjDADFCBMFrCBcACACA4BBCADACFCACCCBGFCDCDCDCDCDCLCCKAnDDCFCBDBaBFCRDOADB"
        "HAQAgWCzdCeCeBfBhCBCGJADKKAuBC8EA3DCFBKAHC8GBDA7BACGCACADHHJDAxBNjCDxBACECAGApBINBhBDDBCC5BACBEACC7BHDB5EC"
        "CMCGFAHAEBnG1BHDxWMFAEL//CCuEAhDfrRDsDB1udAFJhBBxCBxIAEAFAaB+EAcR1BHaKvBCxBADDDApBAkCFDBDBNAJAwBA0BACCDBGB"
        "CArBBJAvHADAFAx5TAiXPRPueAjHA2EEn0BCCBGDpBCFAmFB7oBA3BO5BCyBDDBmCClBECADE/BANB1BIMCjDCDACBoFAEHWB7BAEAmBGE"
        "E/JFCAFBCBvHDHBCBcB2CHDACBrDACADFCAmDCDDCEl+UE8BG5iBDroTBpmFCSHDGfD1EC89B2BFxBJAPAXECOhxDGqhmYvH8EhBOLGbFb"
        "DjBAGAEALBEAEA/VAJAzOFqBB0BACADADAtBBVBCBOADBrCDnDAsBNqHC3BOgBAmIBLAgMAkYA7CALBpFOCAmBDoCArCEFBwDFsFAlTI4E"
        "AtTBtBBvCCoCB+ECCCmBK6JB5GBhEGCFtFG8ED8BE/BBhCHMA9ZXJTCMCLfBPB6TDeB+hBNwCBgBJ0MVgCDhBB8XDCBxDAwEuBCS/NCFJD"
        "LRANAjDA7CAjgdBuICkDALA0DF9LD3CBpBCCAyBBwBAiDMRB9DD/DBRB6HAzqUBxGJXiBCNCAFACB2ECCFCDLBEBbCCAcACACG7MC9UAxB"
        "A/MAoXAoGAgBAxIInBAxDGjCG6CDrlBGuDBCD/DDxBBwCEEAOACC5CFsDA9QA7HWqDC5HCypDE6vRBmEAiCEJA7qUAovHEsgCgGiEgwBBA"
        "CBACBACBAKBAECE6BBEtCBACBACBAMBIPBACBACBAMCKJBCFBACBACBACBAKDMPBACBACBAMBINDQBBACBACBACBAKBAECE6BBEtCBACBA"
        "CBAMBIPBACBACBAMCKJBCFBACBACBACBAKDMPBACBACBAMBINCAOBvDHBgCAB/BEBgCAB/BkCBgCAB7BtCBgCAB/BCBgCAB/BKBgCAB/BK"
        "BgCAB9BABgCAD9BPBgCAB/BEBgCAB/BCBgCAB/BiCBgCAB/B3BBgCAB7BTBgCAB/BIBgCAB/BCBgCAB/BgCBgCAB9BpCBgCAD9BCBgCAB/"
        "BCBgCAB/BEBgCAB/BkCBgCAB/BhCECJBgCAB9BqCBgCAC9BrCBgCAB/BsCBgCAB/B1BBgCAF7BVBgCAB/BsCBgCAB/B1BBgCAE9BPBgCAB"
        "/BEBgCAB/BKBgCAD5BTBgCAB/BsCBgCAB/B1BBgCAB9BVBgCAB/BCBgCAB/BqCBgCAB/B1BBgCAB9B2BBgCAB/B1BBgCAD9BRBgCAB/BCB"
        "gCAB/BEBgCAB/BIBgCAB/BCBgCAB/B6BBgCAB7BrCBgCAB7BABgCAB/BMBCNBgCAB/BMBgCAB/BKBgCAiB1CeBgCAOzBABgCAdnDdBgCAB"
        "vBABgCABzBABgCABzBABgCABuGPBgCAB/BFBgCAB/BWBgCAB/BXBgCACvDIBgCABkUABCABhWABgCAD9JQBgCAB3BABgCAB3B4BBgCAB2X"
        "nCBCABnDQB2NABviBAElCVBgCADxBBBgCABuFCBgCAB9BABgCABbABgCABtLcBgCAB/BEBgCAB3BDBgCAB/BEBgCAB3BDBgCAB/BEBgCAB"
        "zBDBgCAB/BEBgCAB5BDBgCAB/BEBgCAB5BDBgCAB/BEBgCABjCqBBgCAB9BABgCAD3CzBBgCAHtCJBgCAB3BgCBgCABiHlCBgCABhCABgC"
        "ABrKGBgCAB+bFBCABrdABgCAtIuoBnwBBCACkBABViwBwB9EhwBK7nBAH6GiwBByuBABztBhwBB8tBiwBBEABEACMACMABIABiCAahDOBY"
        "ABYNBIABEABEABkBAajBOBYABLNBMABIAFSABAOsBmEPBAQCDNEZOFoBNBDBBWMLVAgBgCAXFLBAQCDNEmCOF3BNBDBBWMYiDSBCAqC9FR"
        "BgCAOrCABgCAB/BEBgCAD1BDBgCADmKEBCABlMABgCAB9BABgCAD9BHBgCAB/BIBgCABzBABgCAD0KABCAB3LABgCABzCHBgCAB/BIBgCA"
        "B/BGBgCAB3BFBgCAD3BABgCApJ4d20BBACBiCABhCCBmCB6E2IACnBARiBA2SslBwuBIQADGAkB7BABCABCABKABKABCABSABIAsDwJkIB"
        "AyBQrC1BBCACaA0CmIgIDMAjBjCABCABKADeAqH4R0RDAvBBAyBQrC1BBCA3BgH2J2BoDxBBCABByB8DgI+H4DyH+HHOABACCAnBBImB/D"
        "4HyGBCABByBuEmJmHCAKBGJBFqBlLyWwdKUAFKAFKAFKAN1BDKiDlECAEBiEYCCAJjEASiCuDKUAFKAFKAFKAN1BDtDqJyHg3CguFuwFCE"
        "ACEACEACEAEIApByCACEADEABCACGA9VhwN/gMBgCAB9B7BBgCAB/B4BBgCAB/BcBgCABqG/CBgCABlKMBgCAB/B4BBgCAB/BcBgCAB/BT"
        "BgCAB/BMBgCAB8K5CBCABBCBCAB7M4CBgCAB/BGBgCABmczCBCABleCBgCAB9BFBgCAB9BGBgCAB/B4BBgCAB/B1BBgCAB/B+BBgCAB/BO"
        "BgCAB9BEBgCABsG9CBgCABnKABgCAB/BkCBgCAB/BcBgCAB9BbBgCAB08O9BBCAB1+O6CBgCAB/BHBgCAB9B3CBgCAB/BMBgCAB/B4BBgC"
        "AB9B3BBgCAB/B4BBgCAB/BcBgCAB/BHBgCABuG3CBgCAB/BOBgCABuFPBCABBCBCAB5PABgCAB/BMBgCAB7BABgCAB/B4BBgCABw+O9BBC"
        "ABxgP6CBgCAB9BzCBgCAB/B4BBgCABuO3BBCABKABCABiwOABCAB9gPABgCAB/B4BBgCAB/BcBgCAB/BHBgCAB9BRBgCAB/BYBgCAB/BFB"
        "gCABmP3CBCABCOBCABpRJBgCAB/BgCBgCAB9BlCBgCAB/BCBgCAB/BOBgCAB/BBBgCAB/B4BBgCAB9B3BBgCAB/BCBgCAB9BBBgCAB9BJB"
        "gCAB/BiCBgCAB/BcBgCABjBABYxCBGEBEACsQFF7T4BBgCAB/BzBBgCABiGPBgCAB/BBBgCAB/BSBgCAB/BLBgCAB87OBBCAB95OBBCABB"
        "BBCABBSBCABBLBCAB65OGBCAB3lP6BBgCAB/BzBBgCAB/BLBgCABqGDBgCAB/BBBgCAB/BSBgCAB/BLBgCAB88OBBCAB/mPOBgCAB/B0BB"
        "gCABzBABgCAB/BzBBgCABqGPBgCAB/BBBgCAB/BSBgCAB/BLBgCABw9OBBCAB5yOBBCABBBBCABBSBCABBLBCABBgCBCAB3UABgCAB/BzB"
        "BgCAB0TPBCABBBBCABBSBCABBLBCABBgCBCABtVlCBgCAB/BmCBgCAB/BzBBgCAB/BLBgCAHwzBgBBACB+0NnBBCABBCBCABBiEBCAB/2N"
        "9CBACBu3NnBBCABBCBCABBiEBCABn1N9CBACB21NnBBCABBCBCAD33NkBBACBm4NnBBCABBCBCADj2NkBBACBy2NnBBCABBCBCABBiEBCA"
        "Bz4N9CBACBi5NnBBCABBCBCABBiEBCAB/2N9CBACBu3NnBBCABBCBCABBiEBCABv5N9CBACB+5NnBBCABBCBCABBiEBCABz3N9CBACBi4N"
        "nBBCABBCBCADj6NkBBACBy6NnBBCABBCBCADn4NkBBACB24NnBBCABBCBCABBiEBCAC36N7CCo7NnBCACCAiEB/4N9CBACBu5NnBBCABBC"
        "BCABBiEBCABv7N9CBACB+7NnBBCABBCBCABBiEBCABv7NjEBACBIBBACBEBBACBEBBACBMBBACBMBBACBIBBACDuzNoEBCABCABCABCABC"
        "ABCABCABCABCABCABCABCABCABCABCABiBABCABCABCABCABCABCABCABCABCABCABCABCABCABCABCABiDABCABCABCABCABCABCABCAB"
        "CABCABCABCABCABCABCABCAB77N9DBADB+7NiEB97NABJACKFBqgOGBpiO9DBADBAHBACBAoECwCp0BDhxBk0BB4sPGB57NABRACSFB+gO"
        "GBhjOpEBACBEBBACBAoEBwiOpEBACBAiEBrgO3DBADBiBHBACDhBiEBiBABhD3DBADBAHBACCqmOBBACBAiEBxjO3DBADBMHBACBTkBBAC"
        "BI8CBMABrC3DBADBAHBACBHmBBxvBnBBACBvEhwBD4xPq0BBl7NABKACJFB6iOGBtlOpEBACBUBBACBAoEBpvBp0BD80PABCAlJzlOAE71"
        "BABT0wBvD+0Q8CBEATEAf4DABIABDA1BiDAFKADGAYwBACEAbuBADOADEACGAX1gRACoiRALnBABhhRABEABsiRABCADaABCADGABCAHGA"
        "BCADOABCADGABCAjB2BABMABCABEAxB9CABCABoBABCAHgCABCABCABCA8Bm1GvzBBCAy9B3yCwzBwrB82Ci2WCEACEACEACEACEACEACE"
        "ACEACEACEACEADGACEACEAHOABACCGBBACCGBBACCGBBACCGBBACXpDBKuFAOcACEACEACEACEACEACEACEACEACEACEACEADGACEACEAH"
        "OABACCGBBACCGBBACCGBBACCGBBACXpDBDyEABCABCABCAEWAigyB20tBxpYBn1SABs9TABjgBABt/OAB9pQABm7CABu7lBABAAB1kjBAB"
        "gocABzkeABi8BAB8qEABmnKAB4xEAB0rDAB2XAB8TABu5DAB5oTAByxBAB87BABqwBAB+lIAB6yGABuoEAB92lBABmvCAB+4LABuxDABkh"
        "KABi/LAB7sgBAB2pJABk+KABu5BAB1pTAB+wPABukDABp1UAB6kEABmlDABk5CABk9OABv0gBABijBABuSABs+IAB+gDAB6zDAButCAB0x"
        "EABqgDABsFABm5DABm0EAB6jCAB2oBAB72SABmPABiiCAByiDAB2zHAB23FABx6JABt/YABqiDAB41OAB8hCAB3hHABwmDABw/JABqjFAB"
        "9hfAB04BABi7GABu8BABqTABgiHABwQABohMABx3hBABy7WAB9qXABfABglUABk6BABmjDABooJABpvFABhrUABmzDAB4vQABpseAB86GA"
        "B2iCABq3JAByeABxlRABo+SAB3zUAB0+HAB35IAB+rPABn1DAB06LAB91UAB2pCABmqPABw0GABimDAB/uPABs/RABvyRABz4EABu+PABp"
        "0PABq8IABtrTAB2rBABgGABwrLABsmKABw4CABmmEAB6vDABztfAB6UABizCABy3CABytDAByjFAB4yEABmoOAB6rCAB6iCABuDABljmBA"
        "B2iKABirCAB2+RAB7uYAB4xBABgHAB0pBAByoFABsiBABg0BABi0CAB0iCAB2nBABurHABvjFABqzFABuyBABlzgBAB4IAB0hBAB2gOAB0"
        "/LABweABh+VAB4SABs4BABmjEABgpIABxsEABhpSABqhEAB8uCABmdABkmBABs5JABuLABizFAB4KAB8+IABksCABkFABgNAB5okBABmiV"
        "ABsgMABowCABt9aAB1lJABolBABoxFABiFAB01EABymCAB48DABonCAB0rHABg4FABixHABpwcABs6XABp6hBABkvKABwHAB80CAB2VAB6"
        "2CABgVABkxBABqqCAB80NABhvjBABisIAB0kaAB5kjBAB8uGABitIABg0QAB95XABybABmtDABg3FAB+vRAB5liBABseABslEAB86EAB2T"
        "AB0VAB6jCABiyDAB4dABu5EABs1EABkBAB2uEABsxCABl6hBAB23NAB5pNABm7OABwsBABk2IAByqIABo7CABwkBABvwbABojDAB6hKAB5"
        "xDABqFABkXABj9EABtiBAB+rNABvpeABsnaAB3vYABlDAB+pGAB6iCABmgNABh1QABy5IABzmDABuoUAB9uDABigHABjsGABvrVABl5GAB"
        "goCAD0pBAC0hHADrpKAB40QABg6BABknBABkCABOAB0CABu8OABvpNAB+vBACqlDACsuCADg0CABqMAEk/DABaAB4CAB4oCABrtGABy9CA"
        "BxwjBAByTABsGAB4XAB2BAB6GAB4kBAByGABkGABwdABwGAB47BABUABsiCABoNABsCABoGAB61BABmJAB+KABofABkvCABmKABwQAB4kB"
        "AB6LABufAB+mCAB6KABWABBABQABMABOABgDABCABkLABiEAB+TABojBABqBABwDABiTABmJABweAB4IABAAB8dAByrCABsIAB2WABwDAB"
        "0ZABqDAB8qBABkIAB2qDAB4RAB4DABr8bABynxHABrtgHADj/ZAB+4BAB5EABveABqcAB2DABuUABmDABmqBABvEABoEAByEABwnBAByFA"
        "BiJABgBAB8QABsMAB06BABOABgJABoEAB2SABsHABrEABsIAB7CABkJABkEABgZABwFABsDABoQAB8RABmKABIAB2DABmiCABiEABuYAB0"
        "ZABfABuFAB4PABgVAByjDABj3CAB0HAB2HABuUABqJABqDABkOABEAB2KABiBAByBABsFABTAB4YABqeAB+QAB2LABgOAByJAB0UABuMAB"
        "60BAB6JAB04BABwcABqEABgBABySAByDAB5CABsDABFABhBAB4EABiFAB8XABgjBAB0TABuSAB6NABsgCABuGABmHABqIABoCABYABgDAB"
        "utBAB0oCAB8qkGABLABi5FABvj8HAB2nCABiCABghpIABuoFABmgRAB/4vHAB2EAkCp7sCo7CCyBGLRUBACBg26DBBACBx36DVBACBAIBC"
        "ABCABCABCABCABCACEABCABCABCABCACEACEABCACEABCACEABCABCABCABCABpBFBHMBUABSAsqFqrlE2vlECEAPUAjE4I6GBCA8QqhBu"
        "hBBAyBvLkXmWBATCAa8H+PkPBCAj9uB859Cs79CBCABOSBACBACBACBAC3C0FZBCABCSBCABBCBCAgypC93hG92oHBJABSABiu5GABj84G"
        "AB8EABaABuEABwHAB+BAB8EABvBABhjOAB45oHAB5u6GABOABgBABmBABq65GABlmoHAB8qOABsCAB875GABn75GABaABvtBABguBABSAB"
        "0igJABz+/IABcABnyOAB41OABWAB4CABKABj2OABk7OABEAB2BABsBABWABCABiBABkDABQABSAByBABUABEABAABAAB6q7GAB37sGABrq"
        "OABqBABo47GABv37GABMABqBABwJABrGABgBABgCAB0DABoFAB0BABmEABgBABiCABAABqBABkBABQABeABoVAB/QABiRABrMABmCAB5mC"
        "ABuuDAB/RABsCAByBABjIABuKABBAB2HABwj+GABj/9GABKABeABoBABQABgEABs0+GABkEAB7v+GAB+CABYAB9EAB8IABv3RABcAB4gSA"
        "BsDABAAB0o/GABpg/GABqBABeABYABqy/GABxx/GABOAB60BABhzBABhqSAB+tSABcABkFABlDABu1gHABhqgHABmqgHABvngHABFABiBA"
        "BqGABCABl7SAB88SAB2CABqBAB4CABtgTABiy0HABtw0HABojTABGABGABoBABwsiJABnpiJABmjiHABAAB/ywGAB9tRABAAB1lTABi/8H"
        "ABkyXABvnhIABSABvoTABurTABmDABUABkCABwIABt0TAB7BABw3TABgkjHAB5gjHABiIABIABEABDAB8CABoBABoCABbABWAB+CABoBAB"
        "IAB0BABWABkEABoFABmCAB4HAB47jHAB98jHABhEAB4GAB2BABiGAB6gkHAB98jHAB5FAB3BAB13UAB2jVABqBAB+BABrCAB1gVABmuVAB"
        "6BAB8plHABtilHABqRAB9KAB/yVABw3VABx4VABnCAB8qLABGAB22KABnGABihNABnteAB8zRABIABMAB6DABVABgnmHABzn8HABirWABp"
        "HAB6MABmDABw+lHAB99lHAB9GABqPABt3WABq6WABiGABuEAB8LAB2/lHABv8lHABlsXABywXABs4mHABl1mHABrwXABoyXAB6CAB2BABC"
        "ABktnHABj4OAB++OAB3qnHAB8moHAB5/nHABcABrGAB+KABwCAByDABrDABwCABeABaABy5nHABz+nHAB2PAB+DAB1zYABw5YABHAB0goH"
        "ABvtoHABqXABg/nHABgDABv8nHABmHAB1BABFABpoZABorZABmDABLABsDABwnqGAB/9pGAB8xoHABtsoHAB+gpHABl4oHABaAB2BABw7p"
        "HABv4pHABqBABgqqHAB+NABzpqHABiBAB9taAByvaAB5uaABAAB+4aABqBABqBABoBABqEAB96aABygbABkxrHABvvrHABo1rHABjyrHAB"
        "+i2GAB941GABi5sHABuBAB4IABvkoIABYAB4ubAB+/sHABBABuCAB0BABphtHABCABAAB2CABhxbABk1bABp0bABgFABu4pIAB98tHAB8D"
        "ABgEABx+bABm0qIAB/suHABo0uHAB2CABrzuHAB4FAB3rcABixcABUABKAB6yvHAB2SABAABx7vHAB3ucABy6sIABp+vHABGABj6cABylt"
        "IAB76vHABjjdABwkdABJAB6BABsoxHABlixHABjmdABssdAB2DABmEABhxdABovvIAB+BAB7uvIABg4vIAB91xHABo8xHABx6xHABqGABW"
        "ABqtyHAByEABlsyHABw0yHABvzyHAB+u5GABz43HAB6teABiFABvveABmzeABxoTABkvmIABcABjiaABSAB154GABGAB05GABlzlBABsif"
        "ABLABkBABz+XAB8/XABEABUAByCABsl0HABtl0HABwDABsEAB0EABzIAB0JAB0CABgHABnQABuHABEABgBAB0l0HABqTABrJABz6zIABs8"
        "fABEABmCABor3HABrm3HABw80HAB980IABIABgl1IABiSABt21IABqugBABYABWABEABgEABhCABsIAB3CABuJABhFABmEAB2BAB96gBAB"
        "0ghBABgCABvghBABumhBABGABog3HAB/42HABOABxqhBABqshBAB9jqBABm/hJABwLABvq5IABSABy9hBAB6EAB6JAB2MABml4HAB5/3HA"
        "BsBAB0FAB4FABw74HAB1y7BABxj9FABdABoDAB8u9FABzg9FABoGAB0p7HAB2BABx16HAB6FABgCAB6h7HABlh7HAB6RAB+JABCAB3FAB6"
        "XAB4BABq+7HAB9m7HABr/lBABkimBABg87HABh5hJAB6tmBABhxcABi3cABki9HABqNAB36jJABQAB02mBAB0i+HABv1kJABo+kJAB1o+H"
        "ABAAB8BAB64+HABnt+HAB96mBABs/mBAB8HAB2BAB4DAB/inBABk2nJAB7hgIAB8SAB6LAB9ioBAB+BAB0noBABu2hIABr9pJAB6gqJABy"
        "QABmIABr9hIABp2oBABm6oBABKABOABUABOABqCABqsjIAuKgYUmHBAoHBD8GBAoHBA4GBE8GBBqGBD8GBBqGBK8GBEBBD8GBCmHDAmHDA"
        "wHBAmHBC8GBCmHBB8GCCmHBD8GBAmHBAoHBB8GBAmHBApHBBqHBApHBBqHBApHBMmH0IEmHqIA8GBDmHBA8GBCmHBA+GBA8GBFmHBF8GBB"
        "mHBA8GBBmHBA+GBAkHBAmHBAKBALBAMBANBAOBAPBAQBARBASBBTBAUBAVBAWCAXCAYBAZCAmHBA8GCASpCHmHBAeBAfBAgBxBAbBAcBAd"
        "BAeBAfBAgBBAhBBAiBBBmHBB8GBEmHBA8GBBmHBA8GRAjBmDGmHDDmHBA8GBAmHDBmHCA8GBBmHBA8GkBAkBfAmHBA8GBBmHBA8GBBmHBC"
        "8GBAmHBB8GBAmHBA8GBCmHBA8GBAmHBA8GBAmHBA8GBAmHBA8GBBmHhFGmHBA8GBAmHjBDmHCImHCCmHCEmHsBC8G5DNmHCA8GBBmHBA8G"
        "BBmHBA8GBCmHBC8GBAbBAcBAdBCmHBA8GBBmHBB8GBEmH9BAHRAJEAmHBA8GBBmHoDAHRAJvDAHRAJvDAHRAJvDAHRAJgEAJgEAJIA0CBA"
        "7CmDAHRAJgEAJ9DAJuDBnDBAJODrDtDB2DPD6DtCB8GcA8GCA8GCA4G4BAhEBAiECAkEGDiEDAiECBmHBAJCBmH/BA8GxDAHCBJzCA8GwW"
        "CmH1dAJgBAJ+EAJLAmHsGAkHwEA+GBAmHBA8G8GAmHBA8GoCAJVHmHDA8GxBEmHBF8GBBmHBA8G3DAHQAJnBAmHBA8GBGmH3BBJ7BAHMBJ"
        "kCAH5ECmHCABBE8GBBmHBD8GBAmHCGBFA8GHAmHEBmHnGBmHBA8GBGmHBA8GBBmHBAqHBA2GBA8GBAqGBkBmHGAmHBApHBA8GBAmHBA8Gx"
        "WBmHBBBBDmHBCBBBmHFAmHEBBBAmHBA8GBAmHBBBBD8GBAmH//CCmHuEAJhDfmHrRA6GBAkHBAoHBA+GBBgHqDBI1udAmHFJmHhBBmHxCB"
        "mH1IAJ+FAJcRmH6BC8GmBAJgDAHNAJwHAmHCBmHBA8GDBmHGBmHCAmH1BAJ3HAJx5TAaiYGmHBG8GBBmHueA8GjHA8G2EEmHz0BA8GCAmH"
        "pBAmHBABBA8GFAJmFAmHBA8GgrBAJ5BAJ6BAJBAHmCCmHxBBJ/BAHtCAJKAHrDAJBAHzFAHBAJyCAHRAJZGmHEEmHuGAJEAH8DAJBAH8HA"
        "JBAH/DAJ3DAJBAH0DAJ0oBAJx1TEB8BGmHorUABnmFB4GBCBEAiHBE4GJH8GDEmHBB8GfDmH1ECmH8tDGmHCQmHDGmHCBmHCEmHmlCG8Gu"
        "DFmHBAH5FhCZAgC/DWAgCYGAgCoBXBCyBCBCHHBCRWBCuBABxHBCBCIABkNBBBCEAB8MBABCCBA6MCABCDAB+EBAB0MBAB2MBABCCAB6MB"
        "AB+MCABmNBABiNBABCEABmNBABqNCABsNBCBCGAB0NBABCCAB0NDABCCAB0NBABCCBAyNCBBCEAB2NBABCEABCIABEBABCCABEBABCCABE"
        "BIBCTIBCTABEBBBCEABhGBABvDBTBCoBABjICIBCYAB2iVBABCCABlKBABwiVDABCCABlMBABqEBABuEBEBCqJBBCGABCJABoHHABsCCCA"
        "qCEABgECBA+DDQAgCSIAgCsBABQJLBCcAB3DDABCCABNBABCDCAjIDPAgFQfAgCwCQBCqBaBC2BABeBGBCPvBBChDlBAgDv7ClBAgmOnBA"
        "BgmOGABgmOzWvCAg9rCwCFAQ5kCABCHqBA/7FtBCA/7FjKqCBC+EAB97OCvBBCoDHAPQFAPQHAPQHAPQFAPRDBPPHAPgBHAPQHAPQHAPQB"
        "APCBAzECABRMDArFEABRMBAPCBAnGOBAPCBA/GCABNMBA/HCBA7HCABRqJAB51OEAB9rQBABrkQHAB4BuBPAgBjBABCzZZA0Bq6BvBAgDg"
        "DABCCABt/UBABruHBABt+UDCBCGAB3hVBAB5/UBAB9hVBAB7hVCABCDABCJBA9jVCxBBCrDBBCHABCuqeWBCgCNBCiFGBCQeBCnCBBCEAB"
        "nglCBEBCNABCCABvyyCDBBCGJBCUABn0yCBAB90yCBAB10yCBABh0yCBABn0yCCABjxyCBABzyyCBABpxyCBABg6BBHBCQAB/CBABl0yCB"
        "ABvjlCBBBCEABt2yCBHBCQABhkzCZABCs5VZAgC/mBnBAwCwFjBAwCgGKAuCMOAuCQGAuCIBAuCs3ByBAgEwGVAgCw6CfAgCgtVfAgCgDY"
        "A2BgzehBAkC";
    // end of what is generated
    return text;
}

// ---- the runtime behind it ----------------------------------------------------------------------------------------

// A loaded graph. Threads may call run at the same time.
class Backend {
  public:
    virtual ~Backend() = default;
    // The outputs, in the order of the names that it was opened with.
    virtual std::vector<Array> run(const Array &input) = 0;
};

// `dtype` of the input is float32, uint8 or int64; numbers of int64 come as floats, which hold every id of a token.
struct Graph {
    std::string bytes, input, dtype;
    std::vector<std::string> outputs;
    int threads = 1;
};

using OpenBackend = std::function<std::unique_ptr<Backend>(const Graph &)>;

#ifdef EDGEKD_ONNXRUNTIME
class OnnxRuntime final : public Backend {
  public:
    explicit OnnxRuntime(const Graph &graph) : graph_(graph) {
        if (api_ == nullptr) {
            throw Error("the onnxruntime library is older than the header that this program was built with; upgrade it",
                        4);
        }
        OrtSessionOptions *options = nullptr;
        check(api_->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "edgekd", &env_));
        check(api_->DisableTelemetryEvents(env_));
        check(api_->CreateSessionOptions(&options));
        const std::unique_ptr<OrtSessionOptions, void (*)(OrtSessionOptions *)> freed(options,
                                                                                      api_->ReleaseSessionOptions);
        check(api_->SetIntraOpNumThreads(options, graph.threads));
        check(api_->SetInterOpNumThreads(options, 1));
        check(api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
        check(api_->CreateSessionFromArray(env_, graph.bytes.data(), graph.bytes.size(), options, &session_));
        graph_.bytes.clear();
        graph_.bytes.shrink_to_fit();
    }
    OnnxRuntime(const OnnxRuntime &) = delete;
    OnnxRuntime &operator=(const OnnxRuntime &) = delete;
    ~OnnxRuntime() override {
        if (api_ != nullptr) {
            release();
        }
    }

    std::vector<Array> run(const Array &input) override {
        const std::vector<std::int64_t> shape(input.shape.begin(), input.shape.end());
        const bool bytes = input.is_bytes();
        std::vector<std::int64_t> ids;
        if (graph_.dtype == "int64") {
            ids.assign(input.floats().begin(), input.floats().end());
        }
        // onnxruntime asks for a pointer that it may write to, and does not write to inputs.
        void *data = bytes         ? static_cast<void *>(const_cast<std::uint8_t *>(input.bytes().data()))
                     : ids.empty() ? static_cast<void *>(const_cast<float *>(input.floats().data()))
                                   : static_cast<void *>(ids.data());
        Value given{nullptr, api_->ReleaseValue};
        OrtValue *raw = nullptr;
        check(api_->CreateTensorWithDataAsOrtValue(
            memory_, data, input.count() * (bytes ? 1 : ids.empty() ? sizeof(float) : sizeof(std::int64_t)),
            shape.data(), shape.size(),
            bytes         ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
            : ids.empty() ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
                          : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
            &raw));
        given.reset(raw);
        const OrtValue *const inputs[] = {raw};
        const char *const name = graph_.input.c_str();
        std::vector<const char *> names;
        for (const std::string &output : graph_.outputs) {
            names.push_back(output.c_str());
        }
        std::vector<OrtValue *> values(names.size(), nullptr);
        OrtStatus *status = api_->Run(session_, nullptr, &name, inputs, 1, names.data(), names.size(), values.data());
        std::vector<Value> owned;
        for (OrtValue *value : values) {
            owned.emplace_back(value, api_->ReleaseValue);
        }
        check(status);
        std::vector<Array> results;
        for (const Value &value : owned) {
            results.push_back(array_of(value.get()));
        }
        return results;
    }

  private:
    using Value = std::unique_ptr<OrtValue, void (*)(OrtValue *)>;

    Array array_of(OrtValue *value) const {
        OrtTensorTypeAndShapeInfo *described = nullptr;
        check(api_->GetTensorTypeAndShape(value, &described));
        const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo *)> freed(
            described, api_->ReleaseTensorTypeAndShapeInfo);
        ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        std::size_t axes = 0;
        void *data = nullptr;
        check(api_->GetTensorElementType(described, &type));
        check(api_->GetDimensionsCount(described, &axes));
        std::vector<std::int64_t> sides(axes);
        check(api_->GetDimensions(described, sides.data(), axes));
        if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
            throw Error("the graph gives other numbers than float32" + std::string(fresh));
        }
        const Shape shape(sides.begin(), sides.end());
        check(api_->GetTensorMutableData(value, &data));
        const auto *first = static_cast<const float *>(data);
        return Array(shape, Floats(first, first + count_of(shape)));
    }
    void check(OrtStatus *status) const {
        if (status != nullptr) {
            const std::string text = api_->GetErrorMessage(status);
            api_->ReleaseStatus(status);
            if (session_ == nullptr) {
                release();
            }
            throw Error("onnxruntime refuses the graph or its input: " + text + fresh);
        }
    }
    void release() const {
        if (session_ != nullptr) {
            api_->ReleaseSession(session_);
        }
        if (memory_ != nullptr) {
            api_->ReleaseMemoryInfo(memory_);
        }
        if (env_ != nullptr) {
            api_->ReleaseEnv(env_);
        }
    }

    Graph graph_;
    const OrtApi *api_ = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    OrtEnv *env_ = nullptr;
    OrtMemoryInfo *memory_ = nullptr;
    OrtSession *session_ = nullptr;
};
#endif

#ifdef EDGEKD_OPENVINO
class OpenVino final : public Backend {
  public:
    explicit OpenVino(const Graph &graph) : outputs_(graph.outputs), dtype_(graph.dtype) {
        try {
            ov::Core core;
            model_ = core.compile_model(core.read_model(graph.bytes, ov::Tensor()), "CPU",
                                        ov::hint::inference_precision(ov::element::f32),
                                        ov::inference_num_threads(graph.threads),
                                        ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY));
        } catch (const ov::Exception &error) {
            throw Error("OpenVINO cannot load the graph: " + std::string(error.what()) + fresh);
        }
    }

    std::vector<Array> run(const Array &input) override {
        try {
            ov::InferRequest request = take();
            const ov::Shape shape(input.shape.begin(), input.shape.end());
            std::vector<std::int64_t> ids;
            if (dtype_ == "int64") {
                ids.assign(input.floats().begin(), input.floats().end());
            }
            // OpenVINO asks for a pointer that it may write to, and does not write to inputs.
            request.set_input_tensor(
                input.is_bytes() ? ov::Tensor(ov::element::u8, shape, const_cast<std::uint8_t *>(input.bytes().data()))
                : ids.empty()    ? ov::Tensor(ov::element::f32, shape, const_cast<float *>(input.floats().data()))
                                 : ov::Tensor(ov::element::i64, shape, ids.data()));
            request.infer();
            std::vector<Array> results;
            for (const std::string &name : outputs_) {
                const ov::Tensor tensor = request.get_tensor(name);
                const auto *first = tensor.data<const float>();
                results.emplace_back(Shape(tensor.get_shape()), Floats(first, first + tensor.get_size()));
            }
            const std::lock_guard<std::mutex> lock(mutex_);
            idle_.push_back(request);
            return results;
        } catch (const ov::Exception &error) {
            throw Error("OpenVINO refuses the input or the output: " + std::string(error.what()) + fresh);
        }
    }

  private:
    ov::InferRequest take() {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (idle_.empty()) {
            return model_.create_infer_request();
        }
        ov::InferRequest request = idle_.back();
        idle_.pop_back();
        return request;
    }

    std::vector<std::string> outputs_;
    std::string dtype_;
    ov::CompiledModel model_;
    std::mutex mutex_;
    std::vector<ov::InferRequest> idle_;
};
#endif

// Opens a graph with the runtime that this program was built with.
inline std::unique_ptr<Backend> open_backend(const Graph &graph) {
#if defined(EDGEKD_ONNXRUNTIME)
    return std::make_unique<OnnxRuntime>(graph);
#elif defined(EDGEKD_OPENVINO)
    return std::make_unique<OpenVino>(graph);
#else
    static_cast<void>(graph);
    throw Error("built without a runtime; define EDGEKD_ONNXRUNTIME or EDGEKD_OPENVINO, or give a backend of your own",
                4);
#endif
}

// ---- the student --------------------------------------------------------------------------------------------------

// What the model says about one sample.
struct Answer {
    std::string label;  // the best one; empty where a multilabel model finds none present, and for an embedding
    std::optional<std::size_t> index;                // its place among the labels
    float score = 0;                                 // of the label; of an embedding the length of its vector
    std::vector<std::pair<std::string, float>> top;  // the top_k classes, the labels that are present, or all targets
    std::optional<double> uncertainty;               // for classes: entropy, 0 (sure of one class) to 1 (all alike)
    Floats outputs;                                  // what the graph gave: the vector of an embedding
    double latency_ms = 0;                           // everything; in a batch, the share of the whole
    bool truncated = false;  // whether the text was longer than the model reads: its end was not looked at
};

struct Options {
    std::string variant;  // empty: the bundle's choice for this CPU
    int threads = 1;
    OpenBackend open = open_backend;
};

// An opened bundle with one variant loaded. Threads may share it.
class Student {
  public:
    explicit Student(const std::filesystem::path &path, const Options &options = {}) : bundle_(path) {
        const Manifest &manifest = bundle_.manifest();
        if (options.threads < 1 || static_cast<std::size_t>(options.threads) > available_cores()) {
            throw Error("threads is " + std::to_string(options.threads) + ", expected a whole number from 1 to " +
                            std::to_string(available_cores()) + " cores",
                        2);
        }
        variant_ = options.variant.empty() ? bundle_.default_variant(cpu_kind()) : options.variant;
        if (manifest.variants.count(variant_) == 0) {
            std::string known;
            for (const std::string &name : manifest.variant_names) {
                known += (known.empty() ? "" : ", ") + name;
            }
            throw Error("no variant '" + variant_ + "', expected one of " + known, 2);
        }
        const std::string &dtype = manifest.inputs.front().dtype;
        if (manifest.inputs.size() != 1 || (dtype != "float32" && dtype != "uint8" && dtype != "int64") ||
            manifest.outputs.front().dtype != "float32") {
            throw Error("the model reads " + std::to_string(manifest.inputs.size()) + " inputs, the first " + dtype +
                        "; expected one of float32, uint8 or int64 and a float32 output: use another runtime for it");
        }
        names_ = {manifest.outputs.front().name};
        for (const std::string &name : manifest.variants.at(variant_).golden) {
            if (std::find(names_.begin(), names_.end(), name) == names_.end()) {
                names_.push_back(name);
            }
        }
        guarded([&] {
            if (reads_texts(manifest.preprocess)) {
                tokenizer_ = std::make_unique<const Tokenizer>(bundle_.read(manifest.preprocess.front().file));
            }
            Graph graph{bundle_.read(manifest.variants.at(variant_).graph), manifest.inputs.front().name, dtype,
                        names_, options.threads};
            one_by_one_ = graph.bytes.find("DynamicQuantize") != std::string::npos;
            backend_ = options.open(graph);
        });
    }

    const Bundle &bundle() const { return bundle_; }
    const std::string &variant() const { return variant_; }
    const std::vector<std::string> &labels() const { return bundle_.manifest().labels; }

    // The answer for one sample: an image (H, W) or (H, W, C), or whatever array the model was trained on.
    Answer predict(const Array &sample, std::size_t top_k = 1) const {
        return predict_batch(std::vector<Array>{sample}, top_k).front();
    }
    // The answer for a text in UTF-8.
    Answer predict(const std::string &text, std::size_t top_k = 1) const {
        return predict_batch(std::vector<std::string>{text}, top_k).front();
    }

    // Whether samples are texts.
    bool reads_text() const { return tokenizer_ != nullptr; }

    // The ids of a text's tokens, without padding.
    Tokens tokens_of(const std::string &text) const {
        if (tokenizer_ == nullptr) {
            throw Error("found a text, but this model reads no texts; give an array");
        }
        return tokenizer_->encode(text, bundle_.manifest().preprocess.front().max_length);
    }

    // The answers for several texts, in their order: those of `predict`, run together if possible.
    std::vector<Answer> predict_batch(const std::vector<std::string> &texts, std::size_t top_k = 1) const {
        const auto started = std::chrono::steady_clock::now();
        std::vector<Array> samples;
        std::vector<bool> truncated;
        guarded([&] {
            for (const std::string &text : texts) {
                const Tokens tokens = tokens_of(text);
                samples.emplace_back(Shape{tokens.ids.size()}, Floats(tokens.ids.begin(), tokens.ids.end()));
                truncated.push_back(tokens.truncated);
            }
        });
        std::vector<Answer> answers = predict_batch(samples, top_k);
        const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - started;
        for (std::size_t i = 0; i < answers.size(); i++) {
            answers[i].truncated = truncated[i];
            answers[i].latency_ms = spent.count() / double(texts.size());
        }
        return answers;
    }

    // The answers for several samples that preprocessing brings to one shape, in their order: those of `predict`, run
    // together if possible.
    std::vector<Answer> predict_batch(const std::vector<Array> &samples, std::size_t top_k = 1) const {
        std::vector<Answer> answers;
        if (one_by_one_ && samples.size() > 1) {
            for (const Array &sample : samples) {
                answers.push_back(predict(sample, top_k));
            }
            return answers;
        }
        if (top_k < 1) {
            throw Error("top_k is 0, expected a whole number from 1", 2);
        }
        guarded([&] {
            const auto started = std::chrono::steady_clock::now();
            const Manifest &manifest = bundle_.manifest();
            const std::vector<Array> outputs =
                samples.empty() ? std::vector<Array>() : run(arithmetic_of(stack(samples)));
            if (samples.empty()) {
                return;
            }
            const Array &first = outputs.front();
            if (first.shape.size() != 2 || first.shape[1] != labels().size() || first.shape[0] != samples.size()) {
                throw Error("the model gave " + text_of(first.shape) + ", expected one number per label" + fresh);
            }
            const std::size_t width = first.shape[1];
            const Floats scores = postprocess(manifest.postprocess, first.floats(), width);
            if (!std::all_of(scores.begin(), scores.end(), [](float score) { return std::isfinite(score); })) {
                throw Error("the answer is NaN or infinite; look for NaN or infinite values in the input");
            }
            for (std::size_t row = 0; row < samples.size(); row++) {
                const auto at = static_cast<std::ptrdiff_t>(row * width),
                           end = static_cast<std::ptrdiff_t>((row + 1) * width);
                answers.push_back(answer_of(Floats(scores.begin() + at, scores.begin() + end), top_k));
                answers.back().outputs.assign(first.floats().begin() + at, first.floats().begin() + end);
            }
            const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - started;
            for (Answer &answer : answers) {
                answer.latency_ms = spent.count() / double(samples.size());
            }
        });
        return answers;
    }

    // Run once on zeros, so that the first answer is not the slow one.
    void warm_up() const {
        guarded([&] {
            Shape shape = bundle_.manifest().inputs.front().shape;
            std::replace(shape.begin(), shape.end(), std::size_t(0), std::size_t(1));
            run(Array(shape, Floats(count_of(shape))));
        });
    }

    // A batch (N, ...) of prepared samples as the model reads it.
    Array arithmetic_of(const Array &batch) const { return arithmetic(bundle_.manifest().preprocess, batch); }

    // What differs from the bundle's golden vectors: nothing, where all is well.
    std::vector<std::string> self_test() const {
        std::vector<std::string> problems;
        guarded([&] {
            const Manifest &manifest = bundle_.manifest();
            const std::map<std::string, Array> golden = bundle_.golden();
            const auto get = [&](const std::string &name) -> const Array & {
                const auto found = golden.find(name);
                if (found == golden.end()) {
                    throw Error("the golden vectors lack '" + name + "'" + fresh);
                }
                return found->second;
            };
            const Array &ready = get("input." + manifest.inputs.front().name);
            const Variant &limits = manifest.variants.at(variant_);
            if (golden.count("raw") > 0) {
                const Array found = arithmetic_of(get("raw"));
                const double apart = found.shape == ready.shape ? largest(found.floats(), ready.as_floats()) : 1.0;
                if (!(apart <= 1e-6)) {
                    problems.push_back("preprocessing differs by " + small(apart) + ", expected at most 1e-06");
                }
            }
            const std::vector<Array> outputs = run(ready);
            for (const std::string &name : limits.golden) {
                const auto place = std::find(names_.begin(), names_.end(), name) - names_.begin();
                compare(name, outputs[static_cast<std::size_t>(place)], get("output." + variant_ + "." + name), limits,
                        problems);
            }
            if (limits.golden.empty()) {
                throw Error("the golden vectors hold no output of '" + variant_ + "'" + fresh);
            }
        });
        return problems;
    }

  private:
    static std::string small(double value) {
        std::ostringstream text;
        text.imbue(std::locale::classic());
        text.precision(2);
        text << value;
        return text.str();
    }

    // What a runtime or the system throws becomes an Error too.
    template <typename Work>
    static void guarded(const Work &work) {
        try {
            work();
        } catch (const Error &) {
            throw;
        } catch (const std::bad_alloc &) {
            throw Error("not enough memory for this sample; scale it down first", 4);
        } catch (const std::exception &error) {
            throw Error(std::string("the bundle contradicts itself (") + error.what() + ")" + fresh);
        }
    }

    static double largest(const Floats &found, const Floats &wanted) {
        double worst = 0;
        for (std::size_t i = 0; i < found.size(); i++) {
            const double apart = std::fabs(double(found[i]) - double(wanted[i]));
            worst = apart >= worst || std::isnan(apart) ? apart : worst;
        }
        return worst;
    }

    void compare(const std::string &name, const Array &found, const Array &wanted, const Variant &limits,
                 std::vector<std::string> &problems) const {
        if (found.shape != wanted.shape || found.shape.size() < 2) {
            throw Error("output '" + name + "' has the shape " + text_of(found.shape) + ", expected " +
                        text_of(wanted.shape) + fresh);
        }
        const Floats &is = found.floats(), should = wanted.as_floats();
        bool inside = true;
        for (std::size_t i = 0; i < is.size(); i++) {
            inside = inside &&
                     std::fabs(double(is[i]) - should[i]) <= limits.abs + limits.rel * std::fabs(double(should[i]));
        }
        if (!inside) {
            problems.push_back("output '" + name + "' differs by up to " + small(largest(is, should)) + ", expected " +
                               small(limits.abs));
        }
        const std::size_t width = found.shape.back(), rows = width == 0 ? 0 : is.size() / width;
        std::size_t same = 0;
        for (std::size_t row = 0; row < rows; row++) {
            const auto best = [&](const Floats &values) {
                const auto first = values.begin() + static_cast<std::ptrdiff_t>(row * width);
                return std::max_element(first, first + static_cast<std::ptrdiff_t>(width)) - first;
            };
            same += best(is) == best(should) ? 1 : 0;
        }
        if (bundle_.manifest().task == "classification" && double(same) < limits.label_agreement * double(rows)) {
            problems.push_back(std::to_string(same) + " of " + std::to_string(rows) + " answers are the same");
        }
    }

    // The ids of a text's tokens (T) at the length that training saw.
    Array padded(const Array &ids) const {
        const std::size_t length = bundle_.manifest().preprocess.front().max_length;
        if (ids.shape.size() != 1 || ids.is_bytes() || ids.count() == 0 || ids.count() > length) {
            throw Error("found an array of shape " + text_of(ids.shape) + ", expected a text, or 1 to " +
                        std::to_string(length) + " ids of tokens");
        }
        Floats row = ids.floats();
        for (const float id : row) {
            if (!(id >= 0 && id < float(tokenizer_->size()) && id == std::floor(id))) {
                throw Error("found " + small(id) + " among the ids, expected whole numbers from 0 to " +
                            std::to_string(tokenizer_->size() - 1));
            }
        }
        row.resize(length, float(tokenizer_->pad()));
        return Array({length}, std::move(row));
    }

    // The samples, prepared, as one batch (N, ...).
    Array stack(const std::vector<Array> &samples) const {
        std::vector<Array> prepared;
        bool bytes = true;
        for (const Array &sample : samples) {
            prepared.push_back(reads_text() ? padded(sample) : prepare(bundle_.manifest().preprocess, sample));
            bytes = bytes && prepared.back().is_bytes();
            if (prepared.back().shape != prepared.front().shape) {
                throw Error("the samples have shapes " + text_of(prepared.front().shape) + " and " +
                            text_of(prepared.back().shape) + ", expected one shape; predict them one by one");
            }
        }
        Shape shape = prepared.front().shape;
        shape.insert(shape.begin(), prepared.size());
        if (bytes) {
            Bytes all;
            for (const Array &sample : prepared) {
                all.insert(all.end(), sample.bytes().begin(), sample.bytes().end());
            }
            return Array(std::move(shape), std::move(all));
        }
        Floats all;
        for (const Array &sample : prepared) {
            const Floats values = sample.as_floats();
            all.insert(all.end(), values.begin(), values.end());
        }
        return Array(std::move(shape), std::move(all));
    }

    // The graph's outputs for preprocessed inputs (N, ...); a graph with a fixed batch gets it in pieces.
    std::vector<Array> run(const Array &batch) const {
        const Tensor &input = bundle_.manifest().inputs.front();
        bool fits = input.shape.size() == batch.shape.size();
        for (std::size_t axis = 1; fits && axis < batch.shape.size(); axis++) {
            fits = input.shape[axis] == 0 || input.shape[axis] == batch.shape[axis];
        }
        if (!fits) {
            throw Error("preprocessing gives samples of shape " +
                        text_of(Shape(batch.shape.begin() + 1, batch.shape.end())) + ", the model reads " +
                        text_of(Shape(input.shape.begin() + 1, input.shape.end())) + " (0: any)");
        }
        const std::size_t total = batch.shape[0], size = input.shape[0] == 0 ? total : input.shape[0];
        if (size == total && batch.is_bytes() == (input.dtype == "uint8")) {
            return check_outputs(backend_->run(batch), size);
        }
        const std::size_t each = total == 0 ? 0 : batch.count() / total;
        std::vector<Array> results;
        for (std::size_t at = 0; at < total; at += size) {
            const std::size_t here = std::min(size, total - at);
            const Floats all = batch.as_floats();
            Floats piece(all.begin() + static_cast<std::ptrdiff_t>(at * each),
                         all.begin() + static_cast<std::ptrdiff_t>((at + here) * each));
            for (std::size_t missing = here; missing < size; missing++) {
                piece.insert(piece.end(), all.end() - static_cast<std::ptrdiff_t>(each), all.end());
            }
            Shape shape = batch.shape;
            shape[0] = size;
            join(results, check_outputs(backend_->run(typed(shape, piece, input.dtype)), size), here);
        }
        return results;
    }

    static Array typed(const Shape &shape, const Floats &values, const std::string &dtype) {
        if (dtype != "uint8") {
            return Array(shape, values);
        }
        Bytes bytes;
        for (const float value : values) {
            if (!(value >= 0 && value <= 255)) {
                throw Error("found a number outside 0 to 255, but the model reads uint8; give images as bytes");
            }
            bytes.push_back(static_cast<std::uint8_t>(value));
        }
        return Array(shape, std::move(bytes));
    }

    std::vector<Array> check_outputs(std::vector<Array> outputs, std::size_t rows) const {
        bool fits = outputs.size() == names_.size();
        for (const Array &output : outputs) {
            fits = fits && !output.is_bytes() && !output.shape.empty() && output.shape[0] == rows;
        }
        if (!fits) {
            throw Error("the graph gives other outputs than bundle.json says" + std::string(fresh));
        }
        return outputs;
    }

    static void join(std::vector<Array> &results, const std::vector<Array> &parts, std::size_t rows) {
        const bool first = results.empty();
        for (std::size_t i = 0; i < parts.size(); i++) {
            Floats all = first ? Floats() : results[i].floats();
            const std::size_t count = parts[i].count() / parts[i].shape[0] * rows;
            all.insert(all.end(), parts[i].floats().begin(),
                       parts[i].floats().begin() + static_cast<std::ptrdiff_t>(count));
            Shape shape = parts[i].shape;
            shape[0] = (first ? 0 : results[i].shape[0]) + rows;
            if (first) {
                results.emplace_back(shape, std::move(all));
            } else {
                results[i] = Array(shape, std::move(all));
            }
        }
    }

    Answer answer_of(const Floats &scores, std::size_t top_k) const {
        const Manifest &manifest = bundle_.manifest();
        Answer answer;
        if (manifest.task == "embedding") {
            answer.score = length(scores);
            return answer;
        }
        std::vector<std::size_t> order(scores.size());
        std::iota(order.begin(), order.end(), std::size_t(0));
        if (manifest.task == "classification" || manifest.task == "multilabel") {
            std::stable_sort(order.begin(), order.end(),
                             [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
        }
        if (manifest.task == "classification") {
            order.resize(std::min(order.size(), top_k));
            answer.uncertainty = entropy(scores);
        } else if (manifest.task == "multilabel") {
            double threshold = 0.5;
            for (auto step = manifest.postprocess.rbegin(); step != manifest.postprocess.rend(); ++step) {
                threshold = step->op == "threshold" ? step->value : threshold;
            }
            const auto absent = [&](std::size_t index) { return double(scores[index]) < threshold; };
            order.erase(std::remove_if(order.begin(), order.end(), absent), order.end());
        }
        for (const std::size_t index : order) {
            answer.top.emplace_back(labels()[index], scores[index]);
        }
        answer.score = scores.empty() ? 0.0F : *std::max_element(scores.begin(), scores.end());
        if (!order.empty()) {
            answer.index = order.front();
            answer.label = answer.top.front().first;
            answer.score = answer.top.front().second;
        }
        return answer;
    }

    static float length(const Floats &vector) {
        double squares = 0;
        for (const float value : vector) {
            squares += double(value) * double(value);
        }
        return float(std::sqrt(squares));
    }

    // The entropy of probabilities as a share of the largest possible; none where they are none.
    static std::optional<double> entropy(const Floats &scores) {
        double total = 0, sum = 0;
        for (const float score : scores) {
            total += double(score);
            sum -= score > 0 ? double(score) * std::log(double(score)) : 0.0;
        }
        const bool probabilities = std::all_of(scores.begin(), scores.end(), [](float score) { return score >= 0; });
        if (scores.size() < 2 || !probabilities || std::fabs(total - 1) > 1e-3) {
            return std::nullopt;
        }
        return std::max(0.0, sum / std::log(double(scores.size())));
    }

    Bundle bundle_;
    std::string variant_;
    std::vector<std::string> names_;
    std::unique_ptr<const Tokenizer> tokenizer_;
    bool one_by_one_ = false;  // all samples of a call would share the scale of activations that the graph measures
    std::unique_ptr<Backend> backend_;
};

}  // namespace edgekd

#endif
