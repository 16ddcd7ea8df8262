#include "function/host_compiler.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <sstream>
#include <system_error>

#include "cuda/jit/unavailable.h"
#include "tessera/error.h"

extern char** environ;

namespace tessera::internal {

namespace {

namespace fs = std::filesystem;

// Without traps and errno, which no one reads, conditions become selections and loops vector code. Infinities and NaNs keep
// their meaning.
constexpr std::array kOptions{"-std=c++20",          "-O3", "-march=native", "-fno-math-errno",
                              "-fno-trapping-math",  "-w",  "-fPIC",         "-shared",
                              "-fvisibility=hidden", "-x",  "c++",           "-"};

using Command = std::vector<std::string>;

std::string text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

Command words_of(const char* text) {
  std::istringstream words(text == nullptr ? "" : text);
  return {std::istream_iterator<std::string>(words), {}};
}

bool is_program(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error) && ::access(path.c_str(), X_OK) == 0;
}

// A name with a folder is a path; others are looked for in PATH.
bool is_found(const std::string& name) {
  if (name.find('/') != std::string::npos) {
    return is_program(name);
  }
  const char* const path = std::getenv("PATH");
  std::istringstream folders(path == nullptr ? "" : path);
  for (std::string folder; std::getline(folders, folder, ':');) {
    if (is_program(fs::path(folder.empty() ? "." : folder) / name)) {
      return true;
    }
  }
  return false;
}

// Empty where there is none.
Command find_command() {
  if (Command given = words_of(std::getenv("CXX")); !given.empty()) {
    return is_found(given.front()) ? given : Command{};
  }
  for (const char* name : {"c++", "g++", "clang++"}) {
    if (is_found(name)) {
      return {name};
    }
  }
  return {};
}

// A folder of its own, removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::error_code error;
    const fs::path parent = fs::temp_directory_path(error);
    std::string name = ((error ? fs::path(".") : parent) / "tessera-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) {
      throw Error(ErrorCode::io, "the folder " + name + " cannot be created: " + std::strerror(errno));
    }
    path_ = name;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  fs::path operator/(const char* name) const { return path_ / name; }

 private:
  fs::path path_;
};

// Runs the command with these files as its standard input and as its output and errors. Whether it succeeded.
bool run(const Command& command, const fs::path& input, const fs::path& output) {
  std::vector<char*> arguments;
  for (const std::string& word : command) {
    arguments.push_back(const_cast<char*>(word.c_str()));
  }
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, input.c_str(), O_RDONLY, 0);
  ::posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  ::posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  pid_t child = 0;
  const int failure = ::posix_spawnp(&child, arguments.front(), &actions, nullptr, arguments.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (failure != 0) {
    throw Error(ErrorCode::unsupported, command.front() + " cannot be run: " + std::strerror(failure));
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) {
      throw Error(ErrorCode::unsupported, command.front() + " was lost: " + std::strerror(errno));
    }
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// What -march=native stands for: images in a folder that machines share must not serve another kind of CPU.
std::string cpu_features() {
  std::ifstream file("/proc/cpuinfo");
  std::string features;
  for (std::string line; std::getline(file, line) && !line.empty();) {  // of the first CPU
    for (const char* field : {"vendor_id", "cpu family", "model", "flags", "Features", "CPU part", "CPU implementer"}) {
      if (line.starts_with(field)) {
        features += line + "\n";
        break;
      }
    }
  }
  return features;
}

std::string version_of(const Command& command) {
  static std::mutex mutex;
  static std::map<Command, std::string> known;
  const std::lock_guard lock(mutex);
  const auto [entry, added] = known.try_emplace(command);
  if (added) {
    const TemporaryFolder folder;
    Command question = command;
    question.emplace_back("--version");
    run(question, "/dev/null", folder / "version");
    entry->second = text_of(folder / "version");
  }
  return entry->second;
}

class HostCompiler final : public KernelCompiler {
 public:
  std::optional<std::string> unavailable() const override {
    if (!find_command().empty()) {
      return std::nullopt;
    }
    const char* const chosen = std::getenv("CXX");
    return chosen != nullptr && *chosen != '\0' ? std::string("the C++ compiler in CXX, ") + chosen + ", was not found"
                                                : "no C++ compiler was found: CXX is not set, and PATH has no c++, g++ "
                                                  "or clang++";
  }

  std::string identity() const override {
    const Command command = find_command();
    std::string text;
    for (const std::string& word : command) {
      text += word + " ";
    }
    for (const char* option : kOptions) {
      text.append(option).append(" ");
    }
    static const std::string cpu = cpu_features();
    return text + "\n" + version_of(command) + cpu;
  }

  std::string_view suffix() const override { return ".so"; }

  std::vector<std::byte> compile(const CompileJob& job) const override {
    const TemporaryFolder folder;
    const fs::path source = folder / "source";
    const fs::path image = folder / "function.so";
    std::ofstream(source, std::ios::binary) << job.source;
    Command command = find_command();
    command.insert(command.end(), kOptions.begin(), kOptions.end());
    command.insert(command.end(), {"-o", image.string()});
    if (!run(command, source, folder / "log")) {
      throw Error(ErrorCode::invalid_argument, text_of(folder / "log"));
    }
    const std::string bytes = text_of(image);
    const auto* first = reinterpret_cast<const std::byte*>(bytes.data());
    return {first, first + bytes.size()};
  }
};

}  // namespace

const KernelCompiler& host_compiler() {
  return unless_switched_off([]() -> const KernelCompiler& {
    static const HostCompiler compiler;
    return compiler;
  });
}

}  // namespace tessera::internal
