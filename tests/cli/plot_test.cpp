#include "cli/plot.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "cli/terminal.h"
#include "support/expect_error.h"

namespace tessera::cli {
namespace {

std::vector<MeasuredPoint> points() {
  std::vector<MeasuredPoint> result;
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    for (const std::int64_t length : {512, 1024}) {
      MeasuredPoint& point = result.emplace_back();
      point.pass = pass;
      point.problem.seq_q = point.problem.seq_k = length;
      for (const char* impl : {"standard", "flash"}) {
        Measurement& one = point.measurements.emplace_back();
        one.impl = impl;
        one.seconds = {0.001, 0.002, 0.009};
        one.facts.flops_of_pairs = 1e6;
        one.facts.workspace_bytes = length * 1024;
      }
    }
  }
  result.back().measurements.front().skipped = "too large";
  return result;
}

bool has_gnuplot() {
  try {
    require_gnuplot();
    return true;
  } catch (const Error&) {
    return false;
  }
}

TEST(Measurement, Median) {
  Measurement one;
  one.seconds = {1, 2, 9};
  EXPECT_EQ(one.median(), 2);
  one.seconds = {1, 2, 4, 9};
  EXPECT_EQ(one.median(), 3);
}

TEST(Plot, FormatIsTheEndingOfTheName) {
  EXPECT_EQ(plot_format("a.png"), PlotFormat::png);
  EXPECT_EQ(plot_format("b.png.svg"), PlotFormat::svg);
  EXPECT_EQ(plot_format("c.gp"), PlotFormat::script);
  test::expect_invalid({"--plot", "c.pdf", ".png", ".svg", ".gp"}, [] { plot_format("c.pdf"); });
}

TEST(Plot, DrawsBothFormats) {
  if (!has_gnuplot()) {
    GTEST_SKIP() << "gnuplot is not installed";
  }
  const std::string png =
      draw(bench_plot_script(points(), PlotFormat::png, "a 'title' with $d1 and `date`", {"FMA peak", 1e11}));
  EXPECT_EQ(png.substr(1, 3), "PNG");
  const std::string svg =
      draw(bench_plot_script(points(), PlotFormat::svg, "a 'title' with $d1 and `date`", {"FMA peak", 1e11}));
  EXPECT_NE(svg.find("<svg"), std::string::npos);
  EXPECT_NE(svg.find("`date`"), std::string::npos) << "the title is text, not a command";
  for (const char* label : {"standard, forward", "flash, backward", "Extra memory", "1024"}) {
    EXPECT_NE(svg.find(label), std::string::npos) << label;
  }
}

TEST(Plot, PassesOnWhatGnuplotSays) {
  if (!has_gnuplot()) {
    GTEST_SKIP() << "gnuplot is not installed";
  }
  test::expect_error(ErrorCode::io, {"gnuplot failed"}, [] { draw("this is no command\n"); });
}

TEST(Plot, SaysThatGnuplotIsMissing) {
  const std::string path = std::getenv("PATH");
  ::setenv("PATH", "/nonexistent", 1);
  test::expect_error(ErrorCode::unsupported, {"--plot", "gnuplot"}, [] { require_gnuplot(); });
  ::setenv("PATH", path.c_str(), 1);
}

TEST(Terminal, TablesAlignNumbersToTheRight) {
  Table table({"seq", "time", ""});
  table.align_left(2);
  table.add({"1", "10 ms", "ok"});
  table.add({"1024", "1 ms", ""});
  const std::string text = table.text();
  EXPECT_EQ(text.substr(0, text.find('\n')), "  seq    time");
  EXPECT_NE(text.find("\n  1     10 ms  ok\n"), std::string::npos) << text;
  EXPECT_NE(text.find("\n  1024   1 ms\n"), std::string::npos) << text;
}

TEST(Terminal, Units) {
  EXPECT_EQ(bytes_text(0), "0 B");
  EXPECT_EQ(bytes_text(1023), "1023 B");
  EXPECT_EQ(bytes_text(1536), "1.50 KiB");
  EXPECT_EQ(bytes_text(37.5 * 1024 * 1024), "37.5 MiB");
  EXPECT_EQ(bytes_text(256.0 * 1024 * 1024 * 1024), "256 GiB");
  EXPECT_EQ(time_text(0.0000123), "12.3 us");
  EXPECT_EQ(time_text(0.123), "123 ms");
  EXPECT_EQ(time_text(1.5), "1.50 s");
}

}  // namespace
}  // namespace tessera::cli
