#include "cli/plot.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <system_error>
#include <utility>

#include "cli/file_io.h"
#include "core/fail.h"
#include "tessera/error.h"

extern char** environ;

namespace tessera::cli {

namespace {

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

// Files without a name: no pipe can fill up, and no path gets into a script.
File scratch_file() {
  File file(std::tmpfile());
  if (!file) {
    throw Error(ErrorCode::io, "cannot create a temporary file: " + std::generic_category().message(errno));
  }
  return file;
}

std::string contents(std::FILE* file) {
  std::fseek(file, 0, SEEK_SET);
  std::string text;
  std::array<char, 1 << 14> buffer{};
  while (std::feof(file) == 0 && std::ferror(file) == 0) {
    text.append(buffer.data(), std::fread(buffer.data(), 1, buffer.size(), file));
  }
  return text;
}

struct Finished {
  int status = 0;
  std::string output;
  std::string errors;
};

// Runs gnuplot, found on PATH, without a shell.
Finished run_gnuplot(const std::vector<const char*>& arguments, const std::string& input) {
  const File in = scratch_file();
  const File out = scratch_file();
  const File err = scratch_file();
  std::fwrite(input.data(), 1, input.size(), in.get());
  std::fseek(in.get(), 0, SEEK_SET);  // flushes, and the child shares the position

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ::fileno(in.get()), STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, ::fileno(out.get()), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, ::fileno(err.get()), STDERR_FILENO);
  std::vector<char*> argv{const_cast<char*>("gnuplot")};
  for (const char* argument : arguments) {
    argv.push_back(const_cast<char*>(argument));
  }
  argv.push_back(nullptr);
  pid_t child = 0;
  const int error = ::posix_spawnp(&child, "gnuplot", &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    throw Error(ErrorCode::unsupported, "--plot needs the program gnuplot on PATH (Debian: apt install gnuplot-nox): " +
                                            std::generic_category().message(error));
  }
  Finished finished;
  while (::waitpid(child, &finished.status, 0) < 0 && errno == EINTR) {
  }
  finished.output = contents(out.get());
  finished.errors = contents(err.get());
  return finished;
}

const char* colour_of(const std::string& impl) {
  return impl == "flash" || impl == "sm90" ? "#0b6e99" : impl == "standard" ? "#d1495b" : "#7a7a7a";
}

struct Series {
  std::string impl;
  Pass pass;
  std::vector<std::pair<std::int64_t, const Measurement*>> points;
};

std::vector<Series> series_of(const std::vector<MeasuredPoint>& points) {
  std::vector<Series> all;
  for (const MeasuredPoint& point : points) {
    for (const Measurement& one : point.measurements) {
      if (!one.measured()) {
        continue;
      }
      auto found = all.begin();
      while (found != all.end() && (found->impl != one.impl || found->pass != point.pass)) {
        ++found;
      }
      if (found == all.end()) {
        found = all.insert(all.end(), {one.impl, point.pass, {}});
      }
      found->points.emplace_back(point.problem.seq_k, &one);
    }
  }
  return all;
}

// Columns: length, milliseconds, percent of peak, MiB.
std::string data_block(const std::string& name, const Series& series, double peak) {
  std::string text = fmt::format("${} << EOD\n", name);
  for (const auto& [length, one] : series.points) {
    text += fmt::format("{} {:.9g} {:.9g} {:.9g}\n", length, one->median() * 1e3,
                        100 * one->facts.flops_of_pairs / one->median() / (peak * one->facts.threads),
                        static_cast<double>(one->facts.workspace_bytes) / (1 << 20));
  }
  return text + "EOD\n";
}

struct Panel {
  const char* title;
  int column;
  const char* set_up;
};
constexpr std::array<Panel, 3> kPanels{
    {{"Time, ms", 2,
      "set logscale y\nset autoscale y\nset key top left Left reverse noenhanced samplen 3 spacing 1.25\n"},
     {"Share of {}, %", 3, "unset logscale y\nset yrange [0:100]\nunset key\n"},
     {"Extra memory, MiB", 4, "set logscale y\nset autoscale y\nunset key\n"}}};

std::string plot_command(const std::vector<Series>& all, int column) {
  std::string command;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const bool forward = all[i].pass == Pass::forward;
    command +=
        fmt::format("{}$d{} using 1:{} with linespoints lw 2.5 ps 1.2 pt {} dt {} lc rgb '{}' title {}",
                    i == 0 ? "plot " : ", ", i, column, forward ? 7 : 6, forward ? "1" : "(8,6)",
                    colour_of(all[i].impl), quoted_text(fmt::format("{}, {}", all[i].impl, pass_name(all[i].pass))));
  }
  return command + "\n";
}

}  // namespace

std::string quoted_text(const std::string& text) {
  std::string result = "'";
  for (const char c : text) {
    result += c == '\'' ? "''" : c == '\n' ? " " : std::string(1, c);
  }
  return result + "'";
}

std::string plot_terminal(PlotFormat format, int width, int height) {
  return format == PlotFormat::svg
             ? fmt::format("set terminal svg size {},{} font 'Sans,15' background '#ffffff'\n", width, height)
             : fmt::format("set terminal pngcairo size {},{} font 'Sans,12'\n", width, height);
}

PlotFormat plot_format(const std::string& path) {
  constexpr std::array<std::pair<const char*, PlotFormat>, 3> kEndings{
      {{".png", PlotFormat::png}, {".svg", PlotFormat::svg}, {".gp", PlotFormat::script}}};
  for (const auto& [ending, format] : kEndings) {
    if (path.ends_with(ending)) {
      return format;
    }
  }
  internal::fail_argument("--plot", path, "names that end in .png or .svg, or in .gp for gnuplot's script");
}

PlotFormat check_plot(const std::string& path) {
  if (path.empty()) {
    return PlotFormat::png;
  }
  require_writable(path);
  const PlotFormat format = plot_format(path);
  if (format != PlotFormat::script) {
    require_gnuplot();
  }
  return format;
}

void write_plot(const std::string& path, const std::string& script) {
  if (path.empty()) {
    return;
  }
  const bool drawn = plot_format(path) != PlotFormat::script;
  write_file_atomically(path, drawn ? draw(script) : script);
  fmt::print("{} written to {}\n", drawn ? "plot" : "script of the plot", path);
}

void require_gnuplot() { run_gnuplot({"--version"}, ""); }

std::string bench_plot_script(const std::vector<MeasuredPoint>& points, PlotFormat format, const std::string& title,
                              const PlotPeak& peak) {
  const std::vector<Series> all = series_of(points);
  std::string script = plot_terminal(format, 1600, 560);
  for (std::size_t i = 0; i < all.size(); ++i) {
    script += data_block(fmt::format("d{}", i), all[i], peak.flops_per_second);
  }
  std::string ticks;
  std::int64_t shortest = points.front().problem.seq_k;
  std::int64_t longest = shortest;
  for (const MeasuredPoint& point : points) {
    const std::int64_t length = point.problem.seq_k;
    ticks += fmt::format("{}'{}' {}", ticks.empty() ? "" : ", ", length, std::max<std::int64_t>(length, 1));
    shortest = std::min(shortest, length);
    longest = std::max(longest, length);
  }
  script += fmt::format(
      "set multiplot layout 1,3 title {} noenhanced font ',15' margins 0.045,0.99,0.13,0.83 spacing 0.055\n"
      "set logscale x\nset xrange [{}:{}]\nset xtics ({}) nomirror\nset ytics nomirror\n"
      "set border 3 lc rgb '#666666'\nset grid ytics lc rgb '#c8c8c8' lw 1 dt 1\n"
      "set xlabel 'sequence length'\nset format y '%g'\n",
      quoted_text(title), 0.8 * static_cast<double>(std::max<std::int64_t>(shortest, 1)),
      1.25 * static_cast<double>(std::max<std::int64_t>(longest, 1)), ticks);
  for (const Panel& panel : kPanels) {
    script +=
        fmt::format("{}set title {}\n{}", panel.set_up, quoted_text(fmt::format(fmt::runtime(panel.title), peak.name)),
                    plot_command(all, panel.column));
  }
  return script + "unset multiplot\n";
}

std::string timeline_plot_script(const std::vector<std::vector<TimelineEvent>>& ranks, PlotFormat format,
                                 const std::string& title) {
  struct Row {
    TimelineEvent::Kind kind;
    const char* name;
    const char* colour;
    double above;  // the middle of the rank's place
  };
  constexpr std::array<Row, 3> kRows{{{TimelineEvent::Kind::compute, "compute", "#0b6e99", 0.2},
                                      {TimelineEvent::Kind::wait, "waits", "#d1495b", 0.2},
                                      {TimelineEvent::Kind::transfer, "receives", "#8a8a8a", -0.2}}};
  const int height = 180 + 60 * static_cast<int>(ranks.size());
  std::string script = plot_terminal(format, 1600, height);
  std::string ticks;
  std::string plots;
  for (std::size_t row = 0; row < kRows.size(); ++row) {
    script += fmt::format("$d{} << EOD\n", row);
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
      for (const TimelineEvent& event : ranks[rank]) {
        if (event.kind == kRows[row].kind) {
          const double middle = kRows[row].above - static_cast<double>(rank);
          script += fmt::format("{:.9g} {:.9g} {:.9g} {:.9g} {:.9g} {:.9g}\n", 1e3 * event.begin, middle,
                                1e3 * event.begin, 1e3 * event.end, middle - 0.18, middle + 0.18);
        }
      }
    }
    // An empty block is an error to gnuplot; this point lies outside.
    script += "-1 0 -1 -1 0 0\nEOD\n";
    plots += fmt::format(
        "{}$d{} using 1:2:3:4:5:6 with boxxyerror fs solid 0.85 border lc rgb '#ffffff' fc rgb '{}' title '{}'",
        row == 0 ? "plot " : ", ", row, kRows[row].colour, kRows[row].name);
  }
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    ticks += fmt::format("{}'rank {}' {}", rank == 0 ? "" : ", ", rank, -static_cast<double>(rank));
  }
  return script + fmt::format(
                      "set title {} noenhanced font ',15'\nset key outside top right horizontal\n"
                      "set xlabel 'milliseconds'\nset xrange [0:*]\nset yrange [{}:0.6]\nset ytics ({})\n"
                      "set border 3 lc rgb '#666666'\nset xtics nomirror\nset ytics nomirror\n{}\n",
                      quoted_text(title), 0.4 - static_cast<double>(ranks.size()), ticks, plots);
}

std::string draw(const std::string& script) {
  const Finished finished = run_gnuplot({"-"}, script);
  if (!WIFEXITED(finished.status) || WEXITSTATUS(finished.status) != 0 || finished.output.empty()) {
    throw Error(ErrorCode::io, "gnuplot failed: " + finished.errors.substr(0, finished.errors.find('\n', 1)));
  }
  return finished.output;
}

}  // namespace tessera::cli
