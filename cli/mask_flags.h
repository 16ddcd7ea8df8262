// Flags for a mask: band, packed documents, blocks by pattern or drawn.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/block_flags.h"
#include "tessera/problem.h"

namespace tessera::cli {

// How many keys sequence b has in memory: at least as many as it attends to.
inline std::int64_t stored_keys(const Problem& problem, std::size_t b) {
  return problem.ragged() ? problem.cu_seqlens_k[b + 1] - problem.cu_seqlens_k[b] : problem.seq_k;
}

class MaskFlags {
 public:
  void add(::CLI::App& app, const char* group);

  // Throws Error(invalid_argument) for flags that contradict each other or the sizes of `problem`.
  Mask mask(const Problem& problem) const;
  // The blocks of --block-size over the lengths of `problem`.
  BlockGrid grid(const Problem& problem) const { return {problem.seq_q, problem.seq_k, block_q_, block_k_}; }

 private:
  bool parse(const std::string& text);
  std::optional<BlockMask> blocks(const Problem& problem) const;
  Alignment alignment() const;

  std::string band_ = "none";
  std::vector<BlockPatternMaker> patterns_;
  std::string drawn_blocks_;
  std::int64_t block_q_ = 128;
  std::int64_t block_k_ = 128;
  std::int64_t left_ = Mask::kUnlimited;
  std::int64_t right_ = Mask::kUnlimited;
  std::optional<Alignment> alignment_;
  std::vector<std::vector<std::int64_t>> documents_, documents_k_;  // lengths, for each sequence
};

}  // namespace tessera::cli
