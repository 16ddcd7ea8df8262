// Plots through gnuplot.
#pragma once

#include <string>
#include <vector>

#include "cli/measure.h"
#include "tessera/distributed.h"

namespace tessera::cli {

// A script is what gnuplot would have drawn a png from, for a machine that has it: gnuplot FILE.gp > FILE.png
enum class PlotFormat : std::uint8_t { png, svg, script };

// By the ending of the name, .png, .svg or .gp. Throws Error(invalid_argument) for any other.
PlotFormat plot_format(const std::string& path);

// The format of what --plot names (nothing: png). Throws, before anything is measured, what write_plot() would.
PlotFormat check_plot(const std::string& path);
// The picture, or the script itself, and a line that says so. Nothing for an empty path.
void write_plot(const std::string& path, const std::string& script);

// The command that opens a picture of this size in pixels.
std::string plot_terminal(PlotFormat format, int width, int height);
// A gnuplot string: single quotes take everything literally but themselves.
std::string quoted_text(const std::string& text);

// Throws Error(unsupported) when the program gnuplot is not installed.
void require_gnuplot();

// What shares are relative to: "FMA peak" of one thread, or the "matrix rate" of a GPU.
struct PlotPeak {
  std::string name;
  double flops_per_second = 0;
};
// Time, share of peak and extra memory over the sequence length, for each Impl and pass.
std::string bench_plot_script(const std::vector<MeasuredPoint>& points, PlotFormat format, const std::string& title,
                              const PlotPeak& peak);

// For each rank a row of what it computes and one of what it receives, over time.
std::string timeline_plot_script(const std::vector<std::vector<TimelineEvent>>& ranks, PlotFormat format,
                                 const std::string& title);

// What gnuplot draws for `script`: the bytes of the picture. Throws Error(unsupported) when there is no gnuplot, Error(io)
// when it fails.
std::string draw(const std::string& script);

}  // namespace tessera::cli
