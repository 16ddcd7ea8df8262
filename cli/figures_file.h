// The file of --json: what a command measured or predicted.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace tessera::cli {

// Throws Error(io), before anything is measured, where write_figures() would. Nothing for an empty path.
void check_figures_file(const std::string& path);

// The figures behind this program's version. Nothing for an empty path.
void write_figures(const std::string& path, const nlohmann::ordered_json& figures);
// The same, and a line on stdout that says so.
void report_figures(const std::string& path, const nlohmann::ordered_json& figures);

}  // namespace tessera::cli
