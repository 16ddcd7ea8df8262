// Block masks: patterns, densities, block sizes that kernel tiles divide and others, with every other feature.
#include "conformance/cases.h"

namespace tessera::test {

namespace {

using cli::TensorOptions;

// Two sequences of 300 queries and 280 keys, two heads.
Problem long_problem() {
  Problem problem = base_problem();
  problem.seq_q = 300;
  problem.seq_k = 280;
  return problem;
}

BlockGrid grid_of(const Problem& problem, std::int64_t block_q, std::int64_t block_k) {
  return {problem.seq_q, problem.seq_k, block_q, block_k};
}

// One random pattern for each head, of rising density.
BlockMask by_heads(const BlockGrid& grid, std::int64_t heads) {
  std::vector<BlockMask> masks;
  for (std::int64_t head = 0; head < heads; ++head) {
    masks.push_back(block_patterns::random(grid, static_cast<double>(head + 1) / static_cast<double>(heads + 1),
                                           static_cast<std::uint64_t>(head)));
  }
  return BlockMask::over_heads(masks);
}

// Pairs at a distance that is no multiple of 5, so that every block is partial.
BlockMask with_bits(const BlockGrid& grid) {
  std::vector<std::uint8_t> attends(static_cast<std::size_t>(grid.queries * grid.keys));
  for (std::int64_t i = 0; i < grid.queries; ++i) {
    for (std::int64_t j = 0; j < grid.keys; ++j) {
      attends[static_cast<std::size_t>(i * grid.keys + j)] = (i - j) % 5 != 0 ? 1 : 0;
    }
  }
  return BlockMask::from_dense(grid, attends) & block_patterns::random(grid, 0.6, 8);
}

void add_sizes(std::vector<Case>& cases) {
  struct Size {
    std::int64_t block_q, block_k;
  };
  for (const Size& size : {Size{16, 16}, Size{48, 80}, Size{64, 64}, Size{128, 128}, Size{128, 32}, Size{16, 512}}) {
    for (const DType dtype : {DType::float32, DType::bfloat16}) {
      Case result{"blocks_" + std::to_string(size.block_q) + "x" + std::to_string(size.block_k) + "_" +
                      std::string(dtype_name(dtype)),
                  long_problem(),
                  {}};
      result.problem.dtype = dtype;
      result.problem.mask =
          Mask::blocks(block_patterns::random(grid_of(result.problem, size.block_q, size.block_k), 0.4, 2));
      cases.push_back(result);
    }
  }
}

void add_densities(std::vector<Case>& cases) {
  for (const int eighths : {0, 1, 4, 7, 8}) {
    Case result{"blocks_density_" + std::to_string(eighths) + "_of_8", long_problem(), {}};
    result.problem.mask = Mask::blocks(block_patterns::random(grid_of(result.problem, 32, 32), eighths / 8.0, 6));
    result.tensors.dlse = true;
    cases.push_back(result);
  }
}

}  // namespace

std::vector<Case> block_cases() {
  std::vector<Case> cases;
  add_sizes(cases);
  add_densities(cases);
  const auto add = [&cases](std::string name, void (*change)(Problem&, TensorOptions&)) {
    Case result{std::move(name), long_problem(), {}};
    change(result.problem, result.tensors);
    cases.push_back(result);
  };
  add("blocks_butterfly_causal", [](Problem& p, TensorOptions&) {
    p.mask = Mask::causal() & Mask::blocks(block_patterns::butterfly(grid_of(p, 32, 32)));
  });
  add("blocks_lower_triangular_window", [](Problem& p, TensorOptions&) {
    p.mask = Mask::window(40, 3, Alignment::top_left()) & Mask::blocks(block_patterns::local(grid_of(p, 16, 16), 2));
  });
  add("blocks_global_in_packed_documents", [](Problem& p, TensorOptions&) {
    Segments documents;
    for (std::int32_t n = 0; n < 600; ++n) documents.query.push_back(n % 300 / 77);
    for (std::int32_t n = 0; n < 560; ++n) documents.key.push_back(n % 280 / 70);
    p.mask = Mask::segments(documents) & Mask::blocks(block_patterns::sliding_window_global(grid_of(p, 16, 16), 1));
  });
  add("blocks_of_bits", [](Problem& p, TensorOptions& o) {
    p.mask = Mask::blocks(with_bits(grid_of(p, 48, 64)));
    o.dlse = true;
  });
  add("blocks_of_bits_causal_bfloat16", [](Problem& p, TensorOptions&) {
    p.dtype = DType::bfloat16;
    p.mask = Mask::causal() & Mask::blocks(with_bits(grid_of(p, 32, 80)));
  });
  add("blocks_by_head_grouped", [](Problem& p, TensorOptions&) {
    p.heads_q = 6;
    p.heads_kv = 2;
    p.mask = Mask::blocks(by_heads(grid_of(p, 32, 64), 6));
  });
  add("blocks_by_sequence_and_head", [](Problem& p, TensorOptions&) {
    const BlockGrid grid = grid_of(p, 64, 32);
    const std::vector<BlockMask> sequences{by_heads(grid, 2), by_heads(grid, 2) & block_patterns::local(grid, 1)};
    p.mask = Mask::blocks(BlockMask::over_batch(sequences));
  });
  add("blocks_ragged", [](Problem& p, TensorOptions& o) {
    p.batch = 3;
    set_ragged(p, {0, 100, 100, 333}, {0, 170, 180, 480});
    p.mask = Mask::blocks(block_patterns::bigbird(grid_of(p, 32, 32), 1, 1, 1, 3));
    o.dlse = true;
  });
  add("blocks_key_lengths", [](Problem& p, TensorOptions&) {
    p.key_lengths = {280, 33};
    p.mask = Mask::blocks(block_patterns::strided(grid_of(p, 32, 32), 3));
  });
  add("blocks_everything", [](Problem& p, TensorOptions& o) {
    p.heads_q = 4;
    p.mask = Mask::causal() & Mask::blocks(by_heads(grid_of(p, 64, 64), 4));
    p.softcap = 4.0F;
    p.alibi = p.sinks = true;
    p.bias_shape = {{1, 4, 300, 280}};
    p.dropout.probability = 0.2;
    o.dlse = true;
  });
  add("blocks_broadcast_bias", [](Problem& p, TensorOptions&) {
    p.mask = Mask::blocks(block_patterns::fixed(grid_of(p, 32, 32), 3));
    p.bias_shape = {{2, 1, 1, 280}};
  });
  add("blocks_specials", [](Problem& p, TensorOptions& o) {
    p.mask = Mask::blocks(block_patterns::random(grid_of(p, 48, 80), 0.3, 4));
    o.specials = true;
  });
  add("blocks_of_bits_specials_bfloat16", [](Problem& p, TensorOptions& o) {
    p.dtype = DType::bfloat16;
    p.mask = Mask::blocks(with_bits(grid_of(p, 64, 64)));
    o.specials = true;
  });
  return cases;
}

}  // namespace tessera::test
