// FlashAttention forward for one item: a run of query tiles of one (sequence, head) against all of its keys.
//
// The two matrix products take 4 d FLOP a score and are bound by the FMA ports; the softmax between them costs about ten
// vector instructions a score vector and runs over a score tile that is still in L1/L2.

template <class Arithmetic>
class FlashForward {
  using Unit = typename Arithmetic::Unit;
  static constexpr std::int64_t kUnit = Arithmetic::kDepthUnit;

 public:
  FlashForward(const FlashPlan& plan, const ForwardTensors& tensors, std::span<std::byte> workspace, int thread,
               const FlashItem& item)
      : plan_(plan),
        tensors_(tensors),
        item_(item),
        sequence_(plan.sequences[static_cast<std::size_t>(item.batch)]),
        schedule_(plan.schedule_of(sequence_)),
        workspace_(workspace),
        scratch_(workspace.subspan(static_cast<std::size_t>(plan.scratch.offset_bytes + thread * plan.scratch_bytes),
                                   static_cast<std::size_t>(plan.scratch_bytes))),
        head_kv_(item.head / plan.problem.group_size()),
        q_(unit_slot(plan.layout.q)),
        scores_(plan.layout.scores.in(scratch_)),
        weights_(unit_slot(plan.layout.weights)),
        out_(plan.layout.out.in(scratch_)),
        row_max_(plan.layout.row_max.in(scratch_)),
        row_sum_(plan.layout.row_sum.in(scratch_)),
        rescale_(plan.layout.rescale.in(scratch_)) {}

  void run() {
    load_queries();
    const std::int64_t first_tile = item_.rows.begin / plan_.tile_q;
    const std::int64_t last_tile = ceil_div(item_.rows.end, plan_.tile_q);
    Range span = schedule_.row_span(first_tile);
    for (std::int64_t tile = first_tile + 1; tile < last_tile; ++tile) {
      const Range more = schedule_.row_span(tile);
      span = span.empty()   ? more
             : more.empty() ? span
                            : Range{std::min(span.begin, more.begin), std::max(span.end, more.end)};
    }
    for (std::int64_t key_tile = span.begin; key_tile < span.end; ++key_tile) {
      for (std::int64_t tile = first_tile; tile < last_tile; ++tile) {
        if (const auto kind = schedule_.visit(tile, key_tile)) {
          visit(tile, key_tile, *kind);
        }
      }
    }
    store();
  }

 private:
  Unit* unit_slot(const WorkspaceSlot<float>& slot) const { return reinterpret_cast<Unit*>(slot.in(scratch_)); }

  const Unit* packed(const PackedOperand& operand) const {
    return packed_rows(plan_, operand, sequence_, head_kv_, workspace_);
  }

  void load_queries() {
    const Problem& problem = plan_.problem;
    const auto rows = rows_of(tensors_.q, item_.batch, sequence_.span.query_row, item_.head);
    for (std::int64_t r = 0; r < item_.rows.size(); ++r) {
      prefetch_ahead(rows, item_.rows.begin + r, item_.rows.end, problem.dim_qk);
      load_units<Arithmetic>(rows.at(item_.rows.begin + r), rows.dtype, problem.dim_qk, plan_.q_factor,
                             q_ + r * plan_.layout.q_stride);
    }
    float start_max = -std::numeric_limits<float>::infinity();
    float start_sum = 0;
    if (problem.sinks) {  // a key with this score and a value of zero
      const ConstTensorView& sinks = tensors_.score.sinks;
      start_max = static_cast<const float*>(sinks.data)[item_.head * sinks.strides[0]] * std::numbers::log2e_v<float>;
      start_sum = start_max == -std::numeric_limits<float>::infinity() ? 0.0F : 1.0F;
    }
    std::fill(row_max_, row_max_ + item_.rows.size(), start_max);
    std::fill(row_sum_, row_sum_ + item_.rows.size(), start_sum);
    std::fill(out_, out_ + item_.rows.size() * plan_.padded_v, 0.0F);
  }

  Range panel_columns(Range rows, std::int64_t first_key, TileKind kind) const {
    const std::int64_t keys = std::min(plan_.tile_k, sequence_.span.keys - first_key);
    return kind == TileKind::full ? Range{0, round_up(keys, kPanel)}
                                  : visible_panels(schedule_, rows, first_key, keys, kPanel);
  }

  void visit(std::int64_t tile, std::int64_t key_tile, TileKind kind) {
    const Range rows{tile * plan_.tile_q, std::min((tile + 1) * plan_.tile_q, sequence_.span.queries)};
    const std::int64_t first_key = key_tile * plan_.tile_k;
    const Range columns = panel_columns(rows, first_key, kind);
    const std::int64_t local = rows.begin - item_.rows.begin;

    multiply_by_keys(plan_, q_ + local * plan_.layout.q_stride, plan_.layout.q_stride,
                     packed(plan_.keys_t) + (first_key + columns.begin) * plan_.units_qk, plan_.units_qk, rows.size(),
                     columns.size(), scores_);
    const bool masked = kind == TileKind::partial || first_key + columns.end > sequence_.span.keys;
    for (std::int64_t r = 0; r < rows.size(); ++r) {
      softmax_row(rows.begin + r, local + r, r, first_key + columns.begin, columns.size(), masked);
    }
    const std::int64_t index = plan_.special_index(sequence_, head_kv_, key_tile);
    if (kind == TileKind::partial && plan_.special_values.in(workspace_)[index] != 0) {
      add_values_by_row(rows, local, first_key, columns);
    } else {
      add_values(local, 0, rows.size(), first_key, columns);
    }
  }

  // Online softmax of one row: maximum, rescale, weights, sum.
  void softmax_row(std::int64_t query, std::int64_t state, std::int64_t r, std::int64_t first_key, std::int64_t count,
                   bool masked) {
    const hn::ScalableTag<float> d;
    const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
    float* HWY_RESTRICT s = scores_ + r * plan_.layout.score_stride;
    const ScoreRow row{plan_, sequence_, tensors_.score, item_.batch, item_.head, query, first_key, count};
    float factor = plan_.score_factor;
    if (plan_.modified) {
      modify_scores(row, s, plan_.layout.row_a.in(scratch_), nullptr);
      factor = 1.0F;
    }
    if (masked) {
      fill_outside(s, visible_columns(schedule_, query, first_key, count), count,
                   -std::numeric_limits<float>::infinity());
    }
    auto max0 = hn::LoadU(d, s);
    auto max1 = max0;
    std::int64_t j = 0;
    for (; j + 2 * lanes <= count; j += 2 * lanes) {
      max0 = hn::Max(max0, hn::LoadU(d, s + j));
      max1 = hn::Max(max1, hn::LoadU(d, s + j + lanes));
    }
    const float old_max = row_max_[state];
    const float tile_max = max_of(d, hn::Max(max0, max1)) * factor;
    const float new_max = std::max(old_max, tile_max);
    const float subtract = new_max == -std::numeric_limits<float>::infinity() ? 0.0F : new_max;
    const hn::CappedTag<float, 1> d1;
    const float alpha = hn::GetLane(exp2_of(d1, hn::Set(d1, old_max - subtract)));
    const float sum = exponentials(s, count, factor, subtract, weights_ + r * plan_.layout.weight_stride);
    row_max_[state] = new_max;
    row_sum_[state] = row_sum_[state] * alpha + sum;
    rescale_[r] = alpha;
    if (plan_.problem.dropout.threshold() > 0) {
      drop(row, s, weights_ + r * plan_.layout.weight_stride);
    }
  }

  // s <- 2^(factor s - subtract), in place and, for bfloat16 products, rounded into `weights`. Returns the sum.
  float exponentials(float* HWY_RESTRICT s, std::int64_t count, float factor, float subtract, Unit* weights) const {
    const hn::ScalableTag<float> d;
    const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
    const auto scale = hn::Set(d, factor);
    const auto offset = hn::Set(d, subtract);
    auto sum0 = hn::Zero(d);
    auto sum1 = sum0;
    for (std::int64_t j = 0; j < count; j += 2 * lanes) {
      const auto p0 = exp2_of(d, hn::MulSub(hn::LoadU(d, s + j), scale, offset));
      const auto p1 = exp2_of(d, hn::MulSub(hn::LoadU(d, s + j + lanes), scale, offset));
      sum0 = hn::Add(sum0, p0);
      sum1 = hn::Add(sum1, p1);
      if constexpr (kUnit == 1) {
        hn::StoreU(p0, d, s + j);
        hn::StoreU(p1, d, s + j + lanes);
      } else {
        Arithmetic::store_pairs(p0, p1, weights + j / 2);
        if (plan_.problem.dropout.threshold() > 0) {
          hn::StoreU(p0, d, s + j);
          hn::StoreU(p1, d, s + j + lanes);
        }
      }
    }
    return sum_of(d, hn::Add(sum0, sum1));
  }

  void drop(const ScoreRow& row, float* HWY_RESTRICT s, Unit* weights) const {
    float* HWY_RESTRICT factors = plan_.layout.row_b.in(scratch_);
    dropout_row(row, 1.0F, factors);
    const hn::ScalableTag<float> d;
    const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
    for (std::int64_t j = 0; j < row.count; j += 2 * lanes) {
      const auto p0 = hn::Mul(hn::LoadU(d, s + j), hn::LoadU(d, factors + j));
      const auto p1 = hn::Mul(hn::LoadU(d, s + j + lanes), hn::LoadU(d, factors + j + lanes));
      if constexpr (kUnit == 1) {
        hn::StoreU(p0, d, s + j);
        hn::StoreU(p1, d, s + j + lanes);
      } else {
        Arithmetic::store_pairs(p0, p1, weights + j / 2);
      }
    }
  }

  // O <- rescale O + P V for rows [r, r + count) of the tile.
  void add_values(std::int64_t local, std::int64_t r, std::int64_t count, std::int64_t first_key, Range columns) {
    Product product;
    if constexpr (kUnit == 1) {
      product.a = reinterpret_cast<const Unit*>(scores_ + r * plan_.layout.score_stride);  // Unit is float here
      product.a_stride = plan_.layout.score_stride;
    } else {
      product.a = weights_ + r * plan_.layout.weight_stride;
      product.a_stride = plan_.layout.weight_stride;
    }
    product.b = packed(plan_.values) + (first_key + columns.begin) / kUnit * kPanel;
    product.b_stride = kPanel;
    product.b_panel_stride = sequence_.padded_keys / kUnit * kPanel;
    product.c = out_ + (local + r) * plan_.padded_v;
    product.c_stride = plan_.padded_v;
    product.rows = count;
    product.columns = plan_.padded_v;
    product.depth = columns.size() / kUnit;
    product.scale = rescale_ + r;
    multiply<false, Update::kScale>(product);
  }

  // A hidden value that is NaN or infinite must not meet its weight of zero: each row adds up the values it sees alone.
  void add_values_by_row(Range rows, std::int64_t local, std::int64_t first_key, Range columns) {
    const auto values = rows_of(tensors_.v, item_.batch, sequence_.span.key_row, head_kv_);
    for (std::int64_t r = 0; r < rows.size(); ++r) {
      float* out = out_ + (local + r) * plan_.padded_v;
      const Range seen = visible_columns(schedule_, rows.begin + r, first_key + columns.begin, columns.size());
      for (std::int64_t c = 0; c < plan_.problem.dim_v; ++c) {
        float sum = 0;
        for (std::int64_t j = seen.begin; j < seen.end; ++j) {
          const void* row = values.at(first_key + columns.begin + j);
          sum += weight_at(r, j) * static_cast<float>(load_element(row, values.dtype, c));
        }
        out[c] = rescale_[r] * out[c] + sum;
      }
    }
  }

  float weight_at(std::int64_t r, std::int64_t column) const {
    if constexpr (kUnit == 1) {
      return scores_[r * plan_.layout.score_stride + column];
    } else {
      const Unit pair = weights_[r * plan_.layout.weight_stride + column / 2];
      return bfloat16_to_float(static_cast<std::uint16_t>(column % 2 == 0 ? pair : pair >> 16));
    }
  }

  void store() {
    const Problem& problem = plan_.problem;
    const auto rows = rows_of(tensors_.out, item_.batch, sequence_.span.query_row, item_.head);
    const int threshold = problem.dropout.threshold();
    const float kept = threshold == 256 ? 0.0F : 256.0F / static_cast<float>(256 - threshold);
    for (std::int64_t r = 0; r < item_.rows.size(); ++r) {
      const float normalise = row_sum_[r] == 0.0F ? 0.0F : kept / row_sum_[r];
      store_row(out_ + r * plan_.padded_v, rows.dtype, problem.dim_v, normalise, rows.at(item_.rows.begin + r));
    }
    if (tensors_.lse.absent()) {
      return;
    }
    const auto line = line_of(tensors_.lse, item_.batch, sequence_.span.query_row, item_.head);
    for (std::int64_t r = 0; r < item_.rows.size(); ++r) {
      const float lse = row_sum_[r] == 0.0F ? -std::numeric_limits<float>::infinity()
                                            : (row_max_[r] + std::log2(row_sum_[r])) * std::numbers::ln2_v<float>;
      *static_cast<float*>(line.at(item_.rows.begin + r)) = lse;
    }
  }

  const FlashPlan& plan_;
  const ForwardTensors& tensors_;
  const FlashItem& item_;
  const FlashSequence& sequence_;
  const TileSchedule& schedule_;
  std::span<std::byte> workspace_;
  std::span<std::byte> scratch_;
  std::int64_t head_kv_;
  Unit* q_;
  float* scores_;
  Unit* weights_;
  float* out_;
  float* row_max_;
  float* row_sum_;
  float* rescale_;
};
