#include "cli/figures_file.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/file_io.h"
#include "tessera/version.h"

namespace tessera::cli {

void check_figures_file(const std::string& path) {
  if (!path.empty()) {
    require_writable(path);
  }
}

void write_figures(const std::string& path, const nlohmann::ordered_json& figures) {
  if (path.empty()) {
    return;
  }
  nlohmann::ordered_json document{{"tessera", kVersion}};
  document.update(figures);
  write_file_atomically(path, document.dump(2) + "\n");
}

void report_figures(const std::string& path, const nlohmann::ordered_json& figures) {
  if (path.empty()) {
    return;
  }
  write_figures(path, figures);
  fmt::print("figures written to {}\n", path);
}

}  // namespace tessera::cli
