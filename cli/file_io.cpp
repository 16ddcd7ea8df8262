#include "cli/file_io.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <string>
#include <system_error>

#include "tessera/error.h"

namespace tessera::cli {

namespace {

[[noreturn]] void fail(std::string_view action, const std::filesystem::path& path, int error) {
  throw Error(ErrorCode::io,
              "cannot " + std::string(action) + " " + path.string() + ": " + std::generic_category().message(error));
}

class FileDescriptor {
 public:
  explicit FileDescriptor(int value) : value_(value) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() {
    if (value_ >= 0) {
      ::close(value_);
    }
  }
  int get() const { return value_; }
  // Some file systems report a failed write at close() alone.
  int close() {
    const int result = ::close(value_);
    value_ = -1;
    return result;
  }

 private:
  int value_;
};

// A new file beside `target` that disappears unless it is renamed.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::filesystem::path& target)
      : target_(target), name_(target.string() + ".XXXXXX"), file_(target.empty() ? -1 : ::mkstemp(name_.data())) {
    if (target.empty()) {
      throw Error(ErrorCode::io, "cannot write a file without a name");
    }
    if (file_.get() < 0) {
      const int error = errno;
      name_.clear();
      fail("create a file beside", target_, error);
    }
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    if (!name_.empty()) {
      ::unlink(name_.c_str());
    }
  }

  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t written = ::write(file_.get(), bytes.data(), bytes.size());
      if (written < 0 && errno != EINTR) {
        fail("write", target_, errno);
      }
      bytes = bytes.subspan(written < 0 ? 0 : static_cast<std::size_t>(written));
    }
  }

  void commit() {
    const mode_t mask = ::umask(0);
    ::umask(mask);
    if (::fchmod(file_.get(), 0666 & ~mask) != 0 || ::fsync(file_.get()) != 0 || file_.close() != 0 ||
        ::rename(name_.c_str(), target_.c_str()) != 0) {
      fail("write", target_, errno);
    }
    name_.clear();
    sync_folder();
  }

 private:
  // The rename itself reaches the disk with the folder. Folders that cannot be opened or flushed are left to the system.
  void sync_folder() const {
    const std::filesystem::path parent = target_.parent_path();
    const FileDescriptor folder(::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (folder.get() >= 0) {
      ::fsync(folder.get());
    }
  }

  std::filesystem::path target_;
  std::string name_;
  FileDescriptor file_;
};

}  // namespace

std::vector<std::byte> read_file(const std::filesystem::path& path) {
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat status{};
  if (file.get() < 0 || ::fstat(file.get(), &status) != 0) {
    fail("open", path, errno);
  }
  if (S_ISDIR(status.st_mode)) {
    fail("read", path, EISDIR);
  }
  std::vector<std::byte> bytes(static_cast<std::size_t>(status.st_size));
  std::size_t filled = 0;
  // Pipes have no size and files may grow: read until the end, whatever fstat said.
  for (;;) {
    if (filled == bytes.size()) {
      std::array<std::byte, 1> probe{};
      const ssize_t got = ::read(file.get(), probe.data(), probe.size());
      if (got == 0) {
        break;
      }
      if (got > 0) {
        bytes.resize(bytes.size() + (std::size_t{1} << 16));
        bytes[filled++] = probe[0];
        continue;
      }
    }
    const ssize_t got = ::read(file.get(), bytes.data() + filled, bytes.size() - filled);
    if (got < 0 && errno != EINTR) {
      fail("read", path, errno);
    }
    if (got == 0 && filled < bytes.size()) {
      break;
    }
    filled += got > 0 ? static_cast<std::size_t>(got) : 0;
  }
  bytes.resize(filled);
  return bytes;
}

void write_file_atomically(const std::filesystem::path& path, std::span<const std::span<const std::byte>> pieces) {
  TemporaryFile file(path);
  for (const auto& piece : pieces) {
    file.write(piece);
  }
  file.commit();
}

void require_writable(const std::filesystem::path& path) {
  const TemporaryFile probe(path);
  if (std::filesystem::is_directory(path)) {
    fail("write", path, EISDIR);
  }
}

void write_file_atomically(const std::filesystem::path& path, std::string_view text) {
  const std::array<std::span<const std::byte>, 1> pieces{std::as_bytes(std::span(text))};
  write_file_atomically(path, pieces);
}

}  // namespace tessera::cli
