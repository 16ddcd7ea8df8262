// The cache of kernels that are compiled at run time, with a compiler that only writes down what it was asked.
#include "cuda/jit/cache.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>

#include "core/sha256.h"
#include "tessera/error.h"

namespace tessera::internal {
namespace {

namespace fs = std::filesystem;

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  return {bytes.begin(), bytes.end()};
}

class FakeCompiler final : public KernelCompiler {
 public:
  explicit FakeCompiler(std::string version = "1.0") : version_(std::move(version)) {}
  std::optional<std::string> unavailable() const override { return std::nullopt; }
  std::string identity() const override { return version_; }
  std::vector<std::byte> compile(const CompileJob& job) const override {
    ++compilations;
    if (job.source.empty()) throw Error(ErrorCode::internal, "nothing to compile");
    return bytes_of("image of " + job.source + " for " + job.architecture + std::string(5000, '.'));
  }
  mutable int compilations = 0;

 private:
  std::string version_;
};

class KernelCacheTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "tessera-cache-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  static CompileJob job(std::string source = "kernel") { return {std::move(source), "sm_90a", kHeaders}; }
  std::vector<std::byte> find(const FakeCompiler& compiler, const CompileJob& job) const {
    return find_or_compile(compiler, job, folder_);
  }
  std::size_t files() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder_), fs::directory_iterator{}));
  }

  static constexpr std::array kHeaders{SourceFile{"a.cuh", "int a;"}, SourceFile{"b.cuh", "int b;"}};
  fs::path folder_;
};

TEST(Sha256, GivesThePublishedDigests) {
  EXPECT_EQ(hex(sha256({})), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hex(sha256(bytes_of("abc"))), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hex(sha256(bytes_of(std::string(1000000, 'a')))),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, TellsListsOfTextsApart) {
  EXPECT_NE(Sha256().add("ab").add("c").finish(), Sha256().add("a").add("bc").finish());
}

TEST_F(KernelCacheTest, CompilesOnce) {
  const FakeCompiler compiler;
  const auto first = find(compiler, job());
  EXPECT_EQ(find(compiler, job()), first);
  EXPECT_EQ(compiler.compilations, 1);
  EXPECT_EQ(files(), 1U);
}

TEST_F(KernelCacheTest, WithoutAFolderItCompilesEveryTime) {
  const FakeCompiler compiler;
  find_or_compile(compiler, job(), std::nullopt);
  find_or_compile(compiler, job(), std::nullopt);
  EXPECT_EQ(compiler.compilations, 2);
}

TEST_F(KernelCacheTest, EverythingThatTheImageDependsOnIsInTheKey) {
  const FakeCompiler compiler;
  const Digest key = cache_key(compiler, job());
  EXPECT_EQ(key, cache_key(compiler, job()));
  EXPECT_NE(key, cache_key(FakeCompiler("1.1"), job()));
  EXPECT_NE(key, cache_key(compiler, job("another")));
  CompileJob other = job();
  other.architecture = "sm_80";
  EXPECT_NE(key, cache_key(compiler, other));
  const std::array changed{kHeaders[0], SourceFile{"b.cuh", "int c;"}};
  const std::array renamed{kHeaders[0], SourceFile{"c.cuh", "int b;"}};
  for (const auto& headers : {changed, renamed}) {
    other = job();
    other.headers = headers;
    EXPECT_NE(key, cache_key(compiler, other));
  }
}

TEST_F(KernelCacheTest, AnAlteredEntryIsCompiledAgain) {
  const FakeCompiler compiler;
  const auto image = find(compiler, job());
  const fs::path path = KernelCache(folder_).path_of(cache_key(compiler, job()));
  const auto size = static_cast<std::streamoff>(fs::file_size(path));
  int expected = 1;
  for (const std::streamoff at :
       {std::streamoff{0}, std::streamoff{8}, std::streamoff{40}, std::streamoff{50}, std::streamoff{80}, size - 1}) {
    {
      std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(at);
      const int byte = file.get();
      file.seekp(at);
      file.put(static_cast<char>(byte ^ 1));
    }
    EXPECT_EQ(KernelCache(folder_).load(cache_key(compiler, job())), std::nullopt) << at;
    EXPECT_EQ(find(compiler, job()), image);
    EXPECT_EQ(compiler.compilations, ++expected) << at;
  }
}

TEST_F(KernelCacheTest, ATruncatedOrLongerOrEmptyEntryIsCompiledAgain) {
  const FakeCompiler compiler;
  const auto image = find(compiler, job());
  const fs::path path = KernelCache(folder_).path_of(cache_key(compiler, job()));
  const auto size = fs::file_size(path);
  int expected = 1;
  for (const std::uintmax_t bytes : {std::uintmax_t{0}, std::uintmax_t{79}, std::uintmax_t{80}, size - 1, size + 1}) {
    fs::resize_file(path, bytes);
    EXPECT_EQ(find(compiler, job()), image);
    EXPECT_EQ(compiler.compilations, ++expected) << bytes;
  }
}

TEST_F(KernelCacheTest, AnEntryAboutSomethingElseIsCompiledAgain) {
  const FakeCompiler compiler;
  const auto other = find(compiler, job("another"));
  const KernelCache cache(folder_);
  fs::copy_file(cache.path_of(cache_key(compiler, job("another"))), cache.path_of(cache_key(compiler, job())));
  EXPECT_NE(find(compiler, job()), other);
  EXPECT_EQ(compiler.compilations, 2);
}

TEST_F(KernelCacheTest, AFolderThatCannotBeWrittenToCostsTheCompilationAlone) {
  const FakeCompiler compiler;
  const fs::path file = folder_ / "file";
  std::ofstream(file) << "not a folder";
  EXPECT_FALSE(find_or_compile(compiler, job(), file / "below").empty());
  EXPECT_FALSE(find_or_compile(compiler, job(), file / "below").empty());
  EXPECT_EQ(compiler.compilations, 2);
}

TEST_F(KernelCacheTest, AFailedCompilationLeavesNothing) {
  const FakeCompiler compiler;
  EXPECT_THROW(find(compiler, job("")), Error);
  EXPECT_EQ(files(), 0U);
}

// Readers see whole entries while threads and processes write the same one.
TEST_F(KernelCacheTest, ProcessesShareIt) {
  constexpr int kProcesses = 4;
  constexpr int kRounds = 200;
  const Digest key = cache_key(FakeCompiler(), job());
  const auto image = FakeCompiler().compile(job());
  std::vector<pid_t> children;
  for (int process = 0; process < kProcesses; ++process) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      const KernelCache cache(folder_);
      bool whole = true;
      for (int round = 0; round < kRounds; ++round) {
        whole = cache.store(key, image) && whole;
        whole = cache.load(key) == image && whole;
      }
      ::_exit(whole ? 0 : 1);
    }
    children.push_back(child);
  }
  for (const pid_t child : children) {
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  EXPECT_EQ(files(), 1U);
}

TEST_F(KernelCacheTest, ThreadsShareIt) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      const FakeCompiler compiler;
      for (int round = 0; round < 50; ++round) {
        const auto image = find(compiler, job(std::to_string(round % 5)));
        wrong += image != compiler.compile(job(std::to_string(round % 5))) ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(files(), 5U);
}

// Sets a variable, or removes it, until the end of a test.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    if (const char* found = std::getenv(name)) before_ = found;
    set(value);
  }
  ~Variable() { set(before_ ? before_->c_str() : nullptr); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  void set(const char* value) const { value != nullptr ? ::setenv(name_, value, 1) : ::unsetenv(name_); }
  const char* name_;
  std::optional<std::string> before_;
};

TEST(KernelCacheFolder, IsTheFirstThatIsNamed) {
  const Variable own("TESSERA_CACHE_DIR", "own");
  const Variable cache("XDG_CACHE_HOME", "/caches");
  const Variable home("HOME", "/me");
  EXPECT_EQ(default_cache_folder(), fs::path("own"));
  const Variable no_own("TESSERA_CACHE_DIR", nullptr);
  EXPECT_EQ(default_cache_folder(), fs::path("/caches") / "tessera");
  const Variable relative("XDG_CACHE_HOME", "relative");  // the XDG specification says to ignore these
  EXPECT_EQ(default_cache_folder(), fs::path("/me") / ".cache" / "tessera");
  const Variable no_cache("XDG_CACHE_HOME", nullptr);
  const Variable no_home("HOME", nullptr);
  EXPECT_EQ(default_cache_folder(), std::nullopt);
}

}  // namespace
}  // namespace tessera::internal
