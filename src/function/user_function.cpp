#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <optional>
#include <span>

#include "core/fail.h"
#include "core/sha256.h"
#include "tessera/score_function.h"

namespace tessera {

namespace {

bool in_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

// Where `word` stands in the source as a word of its own, from `from` on.
std::size_t find_word(std::string_view source, std::string_view word, std::size_t from = 0) {
  for (std::size_t at = source.find(word, from); at != std::string_view::npos; at = source.find(word, at + 1)) {
    const std::size_t end = at + word.size();
    if ((at == 0 || !in_word(source[at - 1])) && (end == source.size() || !in_word(source[end]))) {
      return at;
    }
  }
  return std::string_view::npos;
}

// Whether the parameter is used other than for its members, in a body that may call functions of the program.
bool hands_on_index(std::string_view body) {
  for (std::size_t at = find_word(body, "i"); at != std::string_view::npos; at = find_word(body, "i", at + 1)) {
    std::size_t next = at + 1;
    while (next < body.size() && std::isspace(static_cast<unsigned char>(body[next])) != 0) {
      ++next;
    }
    if (next == body.size() || body[next] != '.') {
      return true;
    }
  }
  return false;
}

bool includes_files(std::string_view source) {
  for (std::size_t at = 0; at < source.size();) {
    const std::size_t end = std::min(source.find('\n', at), source.size());
    std::string line(source.substr(at, end - at));
    std::erase_if(line, [](char c) { return c == ' ' || c == '\t'; });
    if (line.starts_with("#include")) {
      return true;
    }
    at = end + 1;
  }
  return false;
}

std::string hash_of(const std::string& name, const std::string& source, const std::vector<float>& params) {
  return internal::hex(
      internal::Sha256().add(name).add(source).add(std::as_bytes(std::span(params.data(), params.size()))).finish());
}

}  // namespace

UserFunction::UserFunction(Data data) {
  constexpr std::string_view kNameAccepted = "printable characters other than quotes and backslashes, at least one";
  const bool printable = std::all_of(data.name.begin(), data.name.end(), [](unsigned char c) {
    return std::isprint(c) != 0 && c != '"' && c != '\'' && c != '\\';
  });
  if (data.name.empty() || !printable) {
    internal::fail_argument("name of a function", "'" + data.name + "'", kNameAccepted);
  }
  if (std::all_of(data.source.begin(), data.source.end(), [](unsigned char c) { return std::isspace(c) != 0; })) {
    internal::fail_argument("source of '" + data.name + "'", "no text", "the definition of a function");
  }
  if (data.source.find('\0') != std::string::npos) {
    internal::fail_argument("source of '" + data.name + "'", "text with a zero character", "text");
  }
  if (includes_files(data.source)) {
    internal::fail_argument("source of '" + data.name + "'", "text with #include",
                            "text that includes nothing; tessera::math has what functions need");
  }
  for (std::size_t n = 0; n < data.params.size(); ++n) {
    if (std::isnan(data.params[n])) {
      internal::fail_argument("params[" + std::to_string(n) + "] of '" + data.name + "'", "nan",
                              "numbers and infinities");
    }
  }
  data.depends_on_batch = data.depends_on_batch || find_word(data.source, "batch") != std::string_view::npos;
  data.depends_on_head = data.depends_on_head || find_word(data.source, "head") != std::string_view::npos;
  data.hash = hash_of(data.name, data.source, data.params);
  data_ = std::make_shared<const Data>(std::move(data));
}

std::string UserFunction::describe() const {
  constexpr std::size_t kShown = 8;
  const std::size_t count = params().size();
  const std::string numbers = count == 0 ? "" : std::to_string(count) + (count == 1 ? " param, " : " params, ");
  return name() + "(" + numbers + hash().substr(0, kShown) + ")";
}

bool UserFunction::equals(const UserFunction& other) const {
  return data_ == other.data_ ||
         (data_->hash == other.data_->hash && data_->score == other.data_->score && data_->mask == other.data_->mask);
}

ScoreFunction::ScoreFunction(std::string source, std::vector<float> params, std::string name)
    : ScoreFunction({}, std::move(source), std::move(params), std::move(name)) {}

ScoreFunction::ScoreFunction(internal::NativeScore native, std::string source, std::vector<float> params,
                             std::string name)
    : UserFunction([&] {
        Data data;
        data.name = std::move(name);
        data.source = std::move(source);
        data.params = std::move(params);
        data.score = native;
        return data;
      }()) {}

MaskFunction::MaskFunction(std::string source, std::vector<float> params, std::string name)
    : MaskFunction({}, std::move(source), std::move(params), std::move(name)) {}

MaskFunction::MaskFunction(internal::NativeMask native, std::string source, std::vector<float> params, std::string name)
    : UserFunction([&] {
        Data data;
        data.name = std::move(name);
        data.source = std::move(source);
        data.params = std::move(params);
        data.mask = native;
        if (native.row != nullptr) {  // the program's own functions may look at what the body does not name
          const std::string_view text = data.source;
          const std::string_view body = text.substr(std::min(text.find('{'), text.size()));
          data.depends_on_batch = data.depends_on_head = hands_on_index(body);
        }
        return data;
      }()) {}

}  // namespace tessera
