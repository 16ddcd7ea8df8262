// The subcommands. Each adds its flags to the application and returns what to run once they are read.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace tessera::cli {

struct Command {
  ::CLI::App* app = nullptr;
  std::function<int()> run;  // returns the exit status
};

Command add_info(::CLI::App& root);
Command add_bench(::CLI::App& root);
Command add_verify(::CLI::App& root);
Command add_run(::CLI::App& root);
Command add_explain(::CLI::App& root);
Command add_plan(::CLI::App& root);
Command add_warm(::CLI::App& root);

}  // namespace tessera::cli
