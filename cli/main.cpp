// tessera: exact attention on the command line.
#include <fmt/format.h>

#include <array>
#include <cstdio>
#include <exception>

#include "cli/commands.h"
#include "cli/flag_values.h"
#include "tessera/error.h"
#include "tessera/version.h"

namespace {

constexpr int kFailureStatus = 1;

int parse_and_run(int argc, char** argv) {
  namespace cli = tessera::cli;
  CLI::App app{"Exact attention without the score matrix.", "tessera"};
  app.set_version_flag("--version", fmt::format("tessera {}", tessera::kVersion));
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  app.footer(
      "tessera COMMAND --help lists the flags of a command. To begin with:\n"
      "  tessera info\n"
      "  tessera verify --seq 1000 --mask causal\n"
      "  tessera bench --dim 128 --mask causal");
  const std::array<cli::Command, 7> commands{cli::add_info(app), cli::add_bench(app),   cli::add_verify(app),
                                             cli::add_run(app),  cli::add_explain(app), cli::add_plan(app),
                                             cli::add_warm(app)};
  const CLI::App* current = &app;
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {  // --help and --version
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    for (const cli::Command& command : commands) {
      current = command.app->parsed() ? command.app : current;
    }
    fmt::print(stderr, "{}: {}\n", current->get_parent() == nullptr ? "tessera" : "tessera " + current->get_name(),
               cli::describe(*current, error));
    return cli::kBadFlagsStatus;
  }
  for (const cli::Command& command : commands) {
    if (command.app->parsed()) {
      current = command.app;
      try {
        return command.run();
      } catch (const tessera::Error& error) {
        fmt::print(stderr, "tessera {}: {}\n", command.app->get_name(), error.what());
        return error.code() == tessera::ErrorCode::invalid_argument ? cli::kBadFlagsStatus : kFailureStatus;
      }
    }
  }
  return kFailureStatus;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return parse_and_run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "tessera: {}\n", error.what());
    return kFailureStatus;
  }
}
