#include "cli/safetensors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "support/expect_error.h"

namespace tessera::cli {
namespace {

using test::expect_error;

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

// A file with this header and this many bytes of data: 0, 1, 2, ...
std::vector<std::byte> file_of(std::string_view header, std::size_t data_bytes) {
  std::vector<std::byte> file(8 + header.size() + data_bytes);
  for (std::size_t i = 0; i < 8; ++i) {
    file[i] = static_cast<std::byte>((header.size() >> (8 * i)) & 0xFF);
  }
  std::ranges::copy(std::as_bytes(std::span(header)), file.begin() + 8);
  for (std::size_t i = 0; i < data_bytes; ++i) {
    file[8 + header.size() + i] = static_cast<std::byte>(i);
  }
  return file;
}

void expect_refused(std::initializer_list<std::string_view> parts, const std::vector<std::byte>& file) {
  expect_error(ErrorCode::io, parts, [&] { parse_safetensors(file); });
}

void expect_header_refused(std::initializer_list<std::string_view> parts, std::string_view header,
                           std::size_t data_bytes = 8) {
  expect_refused(parts, file_of(header, data_bytes));
}

TEST(SafeTensors, ReadsTensorsAndMetadata) {
  const auto file =
      file_of(R"({"__metadata__":{"made by":"hand"},"b":{"dtype":"F16","shape":[1,3],"data_offsets":[8,14]},)"
              R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}   )",
              14);
  const SafeTensors parsed = parse_safetensors(file);
  ASSERT_EQ(parsed.tensors.size(), 2U);
  EXPECT_EQ(parsed.metadata.at("made by"), "hand");
  const SafeTensor* a = parsed.find("a");
  const SafeTensor* b = parsed.find("b");
  ASSERT_NE(a, nullptr);
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(parsed.find("c"), nullptr);
  EXPECT_EQ(a->dtype, "F32");
  EXPECT_EQ(a->shape, std::vector<std::int64_t>{2});
  EXPECT_EQ(a->data.size(), 8U);
  EXPECT_EQ(a->data[7], std::byte{7});
  EXPECT_EQ(b->shape, (std::vector<std::int64_t>{1, 3}));
  EXPECT_EQ(b->data[0], std::byte{8});
  EXPECT_EQ(b->data.data() + b->data.size(), file.data() + file.size());
}

TEST(SafeTensors, ReadsEmptyFilesScalarsAndEmptyTensors) {
  EXPECT_TRUE(parse_safetensors(file_of("{}", 0)).tensors.empty());
  const auto file = file_of(
      R"({"none":{"dtype":"F32","shape":[4,0],"data_offsets":[0,0]},"one":{"dtype":"I64","shape":[],"data_offsets":[0,8]}})",
      8);
  const SafeTensors parsed = parse_safetensors(file);
  EXPECT_TRUE(parsed.find("none")->data.empty());
  EXPECT_TRUE(parsed.find("one")->shape.empty());
  EXPECT_EQ(parsed.find("one")->data.size(), 8U);
}

TEST(SafeTensors, WritesWhatItReads) {
  const auto a = bytes_of("eight by");
  const auto b = bytes_of("sixteen by tests");
  const std::vector<SafeTensor> tensors{
      {"q \"quoted\"", "BF16", {2, 2}, a}, {"k", "F64", {2}, b}, {"e", "F32", {0}, {}}};
  std::vector<std::byte> file = safetensors_header(tensors, {{"key", "value"}});
  EXPECT_EQ(file.size() % 8, 0U);
  file.insert(file.end(), a.begin(), a.end());
  file.insert(file.end(), b.begin(), b.end());
  const SafeTensors parsed = parse_safetensors(file);
  ASSERT_EQ(parsed.tensors.size(), 3U);
  EXPECT_EQ(parsed.metadata, (std::map<std::string, std::string>{{"key", "value"}}));
  for (const SafeTensor& tensor : tensors) {
    const SafeTensor* found = parsed.find(tensor.name);
    ASSERT_NE(found, nullptr) << tensor.name;
    EXPECT_EQ(found->dtype, tensor.dtype);
    EXPECT_EQ(found->shape, tensor.shape);
    EXPECT_TRUE(std::ranges::equal(found->data, tensor.data));
  }
}

TEST(SafeTensors, WriterRefusesWhatTheReaderWould) {
  const auto data = bytes_of("eight by");
  const auto header = [](std::vector<SafeTensor> tensors) {
    return [tensors = std::move(tensors)] { safetensors_header(tensors); };
  };
  expect_error(ErrorCode::io, {"\"q\"", "8 bytes", "12"}, header({{"q", "F32", {3}, data}}));
  expect_error(ErrorCode::io, {"\"q\"", "F33", "F32"}, header({{"q", "F33", {2}, data}}));
  expect_error(ErrorCode::io, {"\"q\"", "twice"}, header({{"q", "F32", {2}, data}, {"q", "F32", {2}, data}}));
}

TEST(SafeTensors, RefusesEveryTruncation) {
  const auto file = file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  for (std::size_t size = 0; size < file.size(); ++size) {
    expect_refused({"safetensors: "}, {file.begin(), file.begin() + static_cast<std::ptrdiff_t>(size)});
  }
  expect_refused({"3 bytes", "8 bytes of header length"}, std::vector<std::byte>(3));
}

TEST(SafeTensors, RefusesOversizedHeaders) {
  auto file = file_of("{}", 0);
  std::memset(file.data(), 0xFF, 8);
  expect_refused({"18446744073709551615", "100000000"}, file);
  file = file_of("{}", 0);
  file[0] = std::byte{3};
  expect_refused({"truncated", "3", "2"}, file);
}

TEST(SafeTensors, RefusesHeadersThatAreNoHeader) {
  expect_header_refused({"not JSON"}, "");
  expect_header_refused({"not JSON"}, "{");
  expect_header_refused({"not JSON"}, R"({"a":})");
  expect_header_refused({"not JSON"}, "{}trailing");
  expect_header_refused({"not JSON"}, "{\"\xFF\":1}");
  expect_header_refused({"header", "JSON object"}, "[]");
  expect_header_refused({"header", "JSON object"}, "7");
  expect_header_refused({"\"a\"", "7", "object with dtype"}, R"({"a":7})");
  expect_header_refused({"\"a\"", "array"}, R"({"a":[1]})");
  expect_header_refused({"__metadata__", "3", "string"}, R"({"__metadata__":{"x":3}})");
  expect_header_refused({"__metadata__", "object of strings"}, R"({"__metadata__":"x"})");
}

TEST(SafeTensors, RefusesFieldsOfTheWrongKind) {
  expect_header_refused({"\"a\"", "no dtype"}, R"({"a":{"shape":[2],"data_offsets":[0,8]}})");
  expect_header_refused({"\"a\"", "no shape"}, R"({"a":{"dtype":"F32","data_offsets":[0,8]}})");
  expect_header_refused({"\"a\"", "no data_offsets"}, R"({"a":{"dtype":"F32","shape":[2]}})");
  expect_header_refused({"\"a\"", "\"extra\"", "dtype, shape"}, R"({"a":{"extra":"x"}})");
  expect_header_refused({"\"a\"", "\"dtype\"", "null"}, R"({"a":{"dtype":null}})");
  expect_header_refused({"\"a\"", "\"shape\"", "-1"}, R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}})");
  expect_header_refused({"\"a\"", "\"shape\"", "2.5"}, R"({"a":{"dtype":"F32","shape":[2.5],"data_offsets":[0,8]}})");
  expect_header_refused({"\"a\"", "\"shape\"", "array"}, R"({"a":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}})");
  expect_header_refused({"\"a\"", "\"shape\"", "\"2\""}, R"({"a":{"dtype":"F32","shape":["2"],"data_offsets":[0,8]}})");
  expect_header_refused({"\"a\"", "2^63"},
                        R"({"a":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]}})");
  expect_header_refused({"\"a\"", "[begin, end]"}, R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4,8]}})");
  expect_header_refused({"\"a\"", "begin <= end"}, R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})");
}

TEST(SafeTensors, RefusesDTypesAndSizesThatDoNotFit) {
  expect_header_refused({"\"a\"", "F33", "F32", "BF16"}, R"({"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}})");
  expect_header_refused({"\"a\"", "8 bytes", "F64", "16"}, R"({"a":{"dtype":"F64","shape":[2],"data_offsets":[0,8]}})");
  expect_header_refused({"\"a\"", "2^63"},
                        R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}})");
}

TEST(SafeTensors, RefusesOffsetsThatDoNotCoverTheDataOnce) {
  const std::string a = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  expect_header_refused({"\"b\"", "overlap"}, "{" + a + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8);
  expect_header_refused({"\"b\"", "gap"}, "{" + a + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}})", 16);
  expect_header_refused({"\"a\"", "gap"}, R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8);
  expect_header_refused({"\"a\"", "6 bytes of data"}, "{" + a + "}", 6);
  expect_header_refused({"2 bytes follow"}, "{" + a + "}", 10);
}

TEST(SafeTensors, RefusesDuplicateKeys) {
  const std::string a = R"("a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]})";
  expect_header_refused({"\"a\"", "twice"}, "{" + a + "," + a + "}", 0);
  expect_header_refused({"\"a\"", "\"dtype\"", "twice"}, R"({"a":{"dtype":"F32","dtype":"F32"}})", 0);
  expect_header_refused({"__metadata__", "twice"}, R"({"__metadata__":{"x":"1","x":"2"}})", 0);
  expect_header_refused({"__metadata__", "twice"}, R"({"__metadata__":{},"__metadata__":{}})", 0);
}

// Names come from a file: what is printed of them must not reach the terminal as commands.
TEST(SafeTensors, MessagesEscapeNames) {
  const std::string header = R"({"\u001b[31m\n":{"dtype":"nope","shape":[],"data_offsets":[0,0]}})";
  try {
    parse_safetensors(file_of(header, 0));
    FAIL() << "no Error was thrown";
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.find('\x1b'), std::string::npos);
    EXPECT_EQ(message.find('\n'), std::string::npos);
    EXPECT_NE(message.find("\\u001b"), std::string::npos) << message;
  }
}

// A header nested deeper than the stack would allow a recursive parser.
TEST(SafeTensors, RefusesDeepNesting) { expect_header_refused({"array"}, std::string(1'000'000, '['), 0); }

}  // namespace
}  // namespace tessera::cli
