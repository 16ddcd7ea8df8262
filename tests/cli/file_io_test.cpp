#include "cli/file_io.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "support/expect_error.h"

namespace tessera::cli {
namespace {

namespace fs = std::filesystem;
using test::expect_error;

class FileIo : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "tessera.XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
  }
  void TearDown() override { fs::remove_all(folder_); }

  static std::string text_of(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  std::ptrdiff_t files() const { return std::distance(fs::directory_iterator(folder_), fs::directory_iterator()); }

  fs::path folder_;
};

TEST_F(FileIo, WritesNewFilesAndReplacesOldOnes) {
  const fs::path path = folder_ / "result";
  write_file_atomically(path, "first");
  EXPECT_EQ(text_of(path), "first");
  write_file_atomically(path, "the second, longer");
  EXPECT_EQ(text_of(path), "the second, longer");
  EXPECT_EQ(files(), 1);
}

TEST_F(FileIo, ReadsWhatItWrites) {
  std::string text(3'000'000, 'x');
  text[1'234'567] = '\0';
  write_file_atomically(folder_ / "large", text);
  const auto bytes = read_file(folder_ / "large");
  ASSERT_EQ(bytes.size(), text.size());
  EXPECT_EQ(bytes[1'234'567], std::byte{0});
  write_file_atomically(folder_ / "empty", "");
  EXPECT_TRUE(read_file(folder_ / "empty").empty());
}

TEST_F(FileIo, ReadsFilesWithoutASize) { EXPECT_FALSE(read_file("/proc/self/status").empty()); }

TEST_F(FileIo, GivesNewFilesTheModeOfTheUmask) {
  const mode_t before = ::umask(027);
  write_file_atomically(folder_ / "file", "x");
  ::umask(before);
  EXPECT_EQ(fs::status(folder_ / "file").permissions(),
            fs::perms::owner_read | fs::perms::owner_write | fs::perms::group_read);
}

TEST_F(FileIo, AFailedWriteLeavesTheOldFileAndNothingElse) {
  const fs::path target = folder_ / "folder";
  fs::create_directory(target);
  std::ofstream(target / "kept") << "old";
  expect_error(ErrorCode::io, {"folder", "directory"}, [&] { write_file_atomically(target, "new"); });
  EXPECT_EQ(text_of(target / "kept"), "old");
  EXPECT_EQ(files(), 1);
}

TEST_F(FileIo, SaysWhyAFileCannotBeRead) {
  expect_error(ErrorCode::io, {"missing", "No such file"}, [&] { read_file(folder_ / "missing"); });
  expect_error(ErrorCode::io, {"directory"}, [&] { read_file(folder_); });
}

TEST_F(FileIo, KnowsBeforehandWhereItCannotWrite) {
  require_writable(folder_ / "result");
  EXPECT_EQ(files(), 0);
  expect_error(ErrorCode::io, {"missing"}, [&] { require_writable(folder_ / "missing" / "result"); });
  expect_error(ErrorCode::io, {"directory"}, [&] { require_writable(folder_); });
  expect_error(ErrorCode::io, {"without a name"}, [&] { require_writable(""); });
}

}  // namespace
}  // namespace tessera::cli
