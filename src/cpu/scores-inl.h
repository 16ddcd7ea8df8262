// Scores of a tile, and what happens to a row of them between the two matrix products: modifiers, the mask, dropout.

// Start of the packed rows of one (sequence, key head).
inline Operand packed_rows(const FlashPlan& plan, const PackedOperand& operand, const FlashSequence& sequence,
                           std::int64_t head_kv, std::span<std::byte> workspace) {
  return operand.slot.in<Arithmetic::Unit>(workspace).at(plan.packed_units(operand, sequence, head_kv));
}

// scores (rows x columns) = A K^T for rows of A, `units` deep, and `columns` packed keys: Q K^T, or dO V^T.
inline void multiply_by_keys(const FlashPlan& plan, const Operand& a, std::int64_t a_stride, const Operand& keys_t,
                             std::int64_t units, std::int64_t rows, std::int64_t columns, float* joined,
                             float* scores) {
  Product product;
  product.a = a;
  product.a_stride = a_stride;
  product.b = keys_t;
  product.b_stride = kPanel;
  product.b_panel_stride = kPanel * units;
  product.c = scores;
  product.c_stride = plan.layout.score_stride;
  product.rows = rows;
  product.columns = columns;
  product.depth = units;
  product.joined = joined;
  multiply<false, Update::kStore>(product);
}

// One row of a score tile: query `query` of (batch, head) against the keys from `first_key` on.
struct ScoreRow {
  const FlashPlan& plan;
  const FlashSequence& sequence;
  const ScoreTensors& tensors;
  std::int64_t batch, head, query, first_key, count;
};

// Softcap, score function, bias and ALiBi, in place; the result is in base 2. `derivative`, unless null, receives d(score) / d(scaled
// product). The bias is gathered into `bias_row` first.
inline void load_bias(const ScoreRow& row, float* HWY_RESTRICT bias_row) {
  const ConstTensorView& bias = row.tensors.bias;
  const auto pick = [&](std::size_t axis, std::int64_t i) {
    return bias.shape[axis] == 1 ? std::int64_t{0} : i * bias.strides[axis];
  };
  const std::int64_t start = pick(0, row.batch) + pick(1, row.head) + pick(2, row.query) + pick(3, row.first_key);
  const std::int64_t step = bias.shape[3] == 1 ? 0 : bias.strides[3];
  const std::int64_t count = std::min(row.count, row.sequence.span.keys - row.first_key);
  if (step == 1) {
    load_row(advance(bias.data, bias.dtype, start), bias.dtype, count, 1.0F, bias_row);
  } else {
    for (std::int64_t j = 0; j < count; ++j) {
      bias_row[j] = static_cast<float>(load_element(bias.data, bias.dtype, start + j * step));
    }
  }
  std::fill(bias_row + count, bias_row + row.count, 0.0F);
}

inline float alibi_slope(const ScoreRow& row) {
  const ConstTensorView& slopes = row.tensors.alibi_slopes;
  const std::int64_t index =
      slopes.rank == 2 ? row.batch * slopes.strides[0] + row.head * slopes.strides[1] : row.head * slopes.strides[0];
  return static_cast<const float*>(slopes.data)[index];
}

// scores <- cap tanh(factor scores / cap), or factor scores without a cap.
inline void cap_scores(const ScoreRow& row, float* HWY_RESTRICT scores, float* HWY_RESTRICT derivative) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto factor = hn::Set(d, row.plan.score_factor);
  const float cap = row.plan.problem.softcap;
  for (std::int64_t j = 0; j < row.count; j += lanes) {
    auto s = hn::Mul(hn::LoadU(d, scores + j), factor);
    auto slope = hn::Set(d, 1.0F);
    if (cap > 0) {
      const auto tangent = tanh_of(d, hn::Mul(s, hn::Set(d, 1.0F / cap)));
      slope = hn::NegMulAdd(tangent, tangent, slope);
      s = hn::Mul(tangent, hn::Set(d, cap));
    }
    hn::StoreU(s, d, scores + j);
    if (derivative != nullptr) {
      hn::StoreU(slope, d, derivative + j);
    }
  }
}

// The user's function sees positions of the sequence alone, not what fills up the last panel.
inline void apply_score_function(const ScoreRow& row, float* HWY_RESTRICT scores, float* HWY_RESTRICT derivative) {
  const Problem& problem = row.plan.problem;
  const ScoreFunction& function = *problem.score_function;
  const std::int64_t count = std::min(row.count, row.sequence.span.keys - row.first_key);
  const FunctionRow keys =
      function_row(problem.function_positions, row.batch, row.head, row.query, row.first_key, count);
  if (derivative == nullptr) {
    function.native().float_row(keys, function.params().data(), scores);
  } else {
    function.native().float_slopes(keys, function.params().data(), scores, derivative);
  }
}

inline void modify_scores(const ScoreRow& row, float* HWY_RESTRICT scores, float* HWY_RESTRICT bias_row,
                          float* HWY_RESTRICT derivative) {
  const Problem& problem = row.plan.problem;
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  // Steps of their own with a function; else everything stays in registers.
  const bool separate = problem.score_function.has_value();
  if (separate) {
    cap_scores(row, scores, derivative);
    apply_score_function(row, scores, derivative);
  }
  const auto factor = hn::Set(d, separate ? 1.0F : row.plan.score_factor);
  const auto log2e = hn::Set(d, std::numbers::log2e_v<float>);
  const float cap = separate ? 0.0F : problem.softcap;
  const bool has_bias = problem.bias_shape.has_value();
  if (has_bias) {
    load_bias(row, bias_row);
  }
  const auto slope = hn::Set(d, problem.alibi ? alibi_slope(row) : 0.0F);
  const std::int64_t position =
      row.query + problem.mask.alignment().resolve(row.sequence.span.queries, row.sequence.span.keys) - row.first_key;
  const auto to_query = hn::Set(di, static_cast<std::int32_t>(std::clamp<std::int64_t>(position, -(1 << 30), 1 << 30)));
  for (std::int64_t j = 0; j < row.count; j += lanes) {
    auto s = hn::Mul(hn::LoadU(d, scores + j), factor);
    if (cap > 0) {
      const auto tangent = tanh_of(d, hn::Mul(s, hn::Set(d, 1.0F / cap)));
      if (derivative != nullptr) {
        hn::StoreU(hn::NegMulAdd(tangent, tangent, hn::Set(d, 1.0F)), d, derivative + j);
      }
      s = hn::Mul(tangent, hn::Set(d, cap));
    }
    if (has_bias) {
      s = hn::Add(s, hn::LoadU(d, bias_row + j));
    }
    if (problem.alibi) {
      const auto distance = hn::Abs(hn::Sub(to_query, hn::Iota(di, static_cast<std::int32_t>(j))));
      s = hn::NegMulAdd(slope, hn::ConvertTo(d, distance), s);
    }
    hn::StoreU(hn::Mul(s, log2e), d, scores + j);
  }
}

// Calls body(range) for each run of columns, counted from the row's first key, that its query sees.
template <class Body>
inline void for_each_visible(const TileSchedule& schedule, std::int64_t query, std::int64_t first_key,
                             std::int64_t count, const Body& body) {
  const std::int64_t last_key = first_key + count;
  for (Range run = schedule.next_keys(query, {first_key, last_key}); !run.empty();
       run = run.end < last_key ? schedule.next_keys(query, {run.end, last_key}) : Range{}) {
    body(Range{run.begin - first_key, run.end - first_key});
  }
}

// The columns, in whole panels, that any of these queries sees.
inline Range visible_panels(const TileSchedule& schedule, Range queries, std::int64_t first_key, std::int64_t count,
                            std::int64_t panel) {
  Range columns{count, 0};
  for (std::int64_t query = queries.begin; query < queries.end; ++query) {
    for_each_visible(schedule, query, first_key, count, [&](Range seen) {
      columns = {std::min(columns.begin, seen.begin), std::max(columns.end, seen.end)};
    });
  }
  return {columns.begin / panel * panel, round_up(columns.end, panel)};
}

// Sets the columns that the query does not see.
inline void fill_hidden(const TileSchedule& schedule, std::int64_t query, std::int64_t first_key, std::int64_t count,
                        float value, float* row) {
  std::int64_t filled = 0;
  for_each_visible(schedule, query, first_key, count, [&](Range seen) {
    std::fill(row + filled, row + seen.begin, value);
    filled = seen.end;
  });
  std::fill(row + filled, row + count, value);
}

// Factors of dropout for one row of weights: 0 or `kept`.
inline void dropout_row(const ScoreRow& row, float kept, float* HWY_RESTRICT factors) {
  const Dropout& dropout = row.plan.problem.dropout;
  if (dropout.key_stride != 1) {  // neighbours share no block
    for (std::int64_t j = 0; j < row.count; ++j) {
      factors[j] = dropout_keeps(dropout, row.batch, row.head, row.query, row.first_key + j) ? kept : 0.0F;
    }
    return;
  }
  const auto threshold = static_cast<unsigned>(dropout.threshold());
  const std::int64_t first = row.first_key + dropout.key_start;
  const std::int64_t last = first + row.count;
  for (std::int64_t group = first >> 6; group <= (last - 1) >> 6; ++group) {
    for (int lane = 0; lane < 4; ++lane) {
      const PhiloxBlock block =
          dropout_block(dropout.seed, row.batch + dropout.batch_start, row.head + dropout.head_start,
                        row.query * dropout.query_stride + dropout.query_start, group, lane);
      for (std::int64_t n = 0; n < 16; ++n) {
        const std::int64_t key = 64 * group + (n >> 1) * 8 + 2 * lane + (n & 1);
        if (key >= first && key < last) {
          factors[key - first] = dropout_byte(block, key) >= threshold ? kept : 0.0F;
        }
      }
    }
  }
}
