// FlashAttention forward for one item: a run of query tiles of one (sequence, head) against all of its keys.
//
// The two matrix products take 4 d FLOP a score and bind, unless AMX makes them; the softmax between them costs about
// thirteen vector instructions a score vector and runs over a score tile that is still in L1/L2.

template <class Arithmetic>
class FlashForward {
  using Unit = typename Arithmetic::Unit;
  static constexpr std::int64_t kUnit = Arithmetic::kDepthUnit;
  static constexpr int kPlanes = Arithmetic::kPlanes;
  static constexpr std::int64_t kRowsAtOnce = 16;

 public:
  FlashForward(const FlashPlan& plan, const ForwardTensors& tensors, std::span<std::byte> workspace, int thread,
               const FlashItem& item)
      : plan_(plan),
        tensors_(tensors),
        item_(item),
        sequence_(plan.sequences[static_cast<std::size_t>(item.batch)]),
        schedule_(plan.schedule_of(sequence_, item.head)),
        workspace_(workspace),
        scratch_(workspace.subspan(static_cast<std::size_t>(plan.scratch.offset_bytes + thread * plan.scratch_bytes),
                                   static_cast<std::size_t>(plan.scratch_bytes))),
        head_kv_(item.head / plan.problem.group_size()),
        drops_(plan.problem.dropout.threshold() > 0),
        q_(plan.layout.q.in<Unit>(scratch_)),
        scores_(plan.layout.scores.in(scratch_)),
        weights_(kUnit == 1 ? Operand{reinterpret_cast<Unit*>(scores_), 0} : plan.layout.weights.in<Unit>(scratch_)),
        out_(plan.layout.out.in(scratch_)),
        row_max_(plan.layout.row_max.in(scratch_)),
        row_sum_(plan.layout.row_sum.in(scratch_)),
        rescale_(plan.layout.rescale.in(scratch_)) {}

  void run() {
    load_queries();
    const std::int64_t first_tile = item_.rows.begin / plan_.tile_q;
    const std::int64_t last_tile = ceil_div(item_.rows.end, plan_.tile_q);
    plan_.tiles_per_visit == 1 ? visit_by_keys(first_tile, last_tile) : visit_by_queries(first_tile, last_tile);
    store();
  }

 private:
  Operand packed(const PackedOperand& operand) const {
    return packed_rows(plan_, operand, sequence_, head_kv_, workspace_);
  }

  // With float32 the scores become the weights in place.
  std::int64_t weight_stride() const { return kUnit == 1 ? plan_.layout.score_stride : plan_.layout.weight_stride; }

  float* joined_if(bool special) const { return kPlanes > 1 && special ? plan_.layout.joined.in(scratch_) : nullptr; }

  void load_queries() {
    const Problem& problem = plan_.problem;
    const auto rows = rows_of(tensors_.q, item_.batch, sequence_.span.query_row, item_.head);
    for (std::int64_t r = 0; r < item_.rows.size(); ++r) {
      prefetch_ahead(rows, item_.rows.begin + r, item_.rows.end, problem.dim_qk);
      load_units<Arithmetic>(rows.at(item_.rows.begin + r), rows.dtype, problem.dim_qk, plan_.q_factor,
                             q_.at(r * plan_.layout.q_stride));
      if (kPlanes > 1 && units_special(q_.units + r * plan_.layout.q_stride, plan_.units_qk)) {
        special_queries_[static_cast<std::size_t>(r / plan_.tile_q)] = true;
      }
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

  // Key tiles outside: a key tile serves every query tile of the item while it is in cache.
  void visit_by_keys(std::int64_t first_tile, std::int64_t last_tile) {
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
          begin_visit(tile);
          add_part({key_tile, *kind});
          end_visit();
        }
      }
    }
  }

  // Query tiles outside: the narrow tiles of a block mask are gathered until a row of scores is full.
  void visit_by_queries(std::int64_t first_tile, std::int64_t last_tile) {
    for (std::int64_t tile = first_tile; tile < last_tile; ++tile) {
      begin_visit(tile);
      for (auto next = schedule_.next_in_row(tile, 0); next; next = schedule_.next_in_row(tile, next->index + 1)) {
        add_part(*next);
        if (part_count_ == plan_.tiles_per_visit) {
          end_visit();
          begin_visit(tile);
        }
      }
      if (part_count_ > 0) {
        end_visit();
      }
    }
  }

  // Some panels of one key tile, and where their scores stand in the rows of this visit.
  struct Part {
    std::int64_t first_key = 0;
    Range columns;  // of the scores
    bool masked = false;
    bool partial = false;
    bool special_values = false;  // some are NaN or infinite
  };

  void begin_visit(std::int64_t tile) {
    rows_ = {tile * plan_.tile_q, std::min((tile + 1) * plan_.tile_q, sequence_.span.queries)};
    local_ = rows_.begin - item_.rows.begin;
    part_count_ = 0;
    columns_ = 0;
  }

  // Scores of the panels of a key tile that any row sees.
  void add_part(const TileVisit& key_tile) {
    const std::int64_t first_key = key_tile.index * plan_.tile_k;
    const std::int64_t keys = std::min(plan_.tile_k, sequence_.span.keys - first_key);
    const bool partial = key_tile.kind == TileKind::partial;
    const Range panels =
        partial ? visible_panels(schedule_, rows_, first_key, keys, kPanel) : Range{0, round_up(keys, kPanel)};
    Part& part = parts_[part_count_++];
    part.partial = partial;
    part.first_key = first_key + panels.begin;
    part.columns = {columns_, columns_ + panels.size()};
    part.masked = partial || part.first_key + panels.size() > sequence_.span.keys;
    const std::int64_t index = plan_.special_index(sequence_, head_kv_, key_tile.index);
    part.special_values = plan_.special_values.in(workspace_)[index] != 0;
    const bool special_keys = plan_.special_keys.in(workspace_)[index] != 0 ||
                              special_queries_[static_cast<std::size_t>(local_ / plan_.tile_q)];
    multiply_by_keys(plan_, q_.at(local_ * plan_.layout.q_stride), plan_.layout.q_stride,
                     packed(plan_.keys_t).at(part.first_key * plan_.units_qk), plan_.units_qk, rows_.size(),
                     panels.size(), joined_if(special_keys), scores_ + columns_);
    columns_ = part.columns.end;
  }

  void end_visit() {
    for (std::int64_t r = 0; r < rows_.size(); r += kRowsAtOnce) {
      softmax_rows(r, std::min(rows_.size() - r, kRowsAtOnce));
    }
    for (std::int64_t n = 0; n < part_count_; ++n) {
      const Part& part = parts_[n];
      if (part.special_values && part.partial) {
        add_values_by_row(part, n == 0);
      } else {
        n == 0 ? add_values<Update::kScale>(part) : add_values<Update::kAdd>(part);
      }
    }
  }

  // Online softmax of up to kRowsAtOnce rows: maximum, rescale, weights, sum. Several at once, so that the chain of steps
  // from a row's maximum to its weights does not hold up the next row.
  void softmax_rows(std::int64_t first, std::int64_t rows) {
    const hn::ScalableTag<float> d;
    const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
    constexpr float kNone = -std::numeric_limits<float>::infinity();
    const float factor = plan_.modified ? 1.0F : plan_.score_factor;
    float* HWY_RESTRICT row_max = row_max_ + local_ + first;
    float* HWY_RESTRICT row_sum = row_sum_ + local_ + first;
    alignas(64) float old_max[kRowsAtOnce] = {};
    alignas(64) float new_max[kRowsAtOnce] = {};
    alignas(64) float subtract[kRowsAtOnce];
    alignas(64) float alpha[kRowsAtOnce];
    for (std::int64_t r = 0; r < rows; ++r) {
      old_max[r] = row_max[r];
      new_max[r] = std::max(old_max[r], prepare_row(first + r) * factor);
    }
    for (std::int64_t r = 0; r < kRowsAtOnce; r += lanes) {
      const auto most = hn::Load(d, new_max + r);
      const auto offset = hn::IfThenElse(hn::Eq(most, hn::Set(d, kNone)), hn::Zero(d), most);
      hn::Store(offset, d, subtract + r);
      hn::Store(exp2_of(d, hn::Sub(hn::Load(d, old_max + r), offset)), d, alpha + r);
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      float* s = scores_ + (first + r) * plan_.layout.score_stride;
      const Operand weights = weights_.at((first + r) * weight_stride());
      row_max[r] = new_max[r];
      row_sum[r] = row_sum[r] * alpha[r] + exponentials(s, columns_, factor, subtract[r], weights);
      rescale_[first + r] = alpha[r];
      for (std::int64_t n = 0; n < part_count_ && drops_; ++n) {
        const std::int64_t begin = parts_[n].columns.begin;
        drop(score_row(parts_[n], rows_.begin + first + r), s + begin, weights.at(begin / kUnit));
      }
    }
  }

  // Modifiers and the mask. Returns the largest score.
  float prepare_row(std::int64_t r) {
    const std::int64_t query = rows_.begin + r;
    float* HWY_RESTRICT s = scores_ + r * plan_.layout.score_stride;
    for (std::int64_t n = 0; n < part_count_; ++n) {
      const Part& part = parts_[n];
      if (plan_.modified) {
        modify_scores(score_row(part, query), s + part.columns.begin, plan_.layout.row_a.in(scratch_), nullptr);
      }
      if (part.masked) {
        fill_hidden(schedule_, query, part.first_key, part.columns.size(), -std::numeric_limits<float>::infinity(),
                    s + part.columns.begin);
      }
    }
    const hn::ScalableTag<float> d;
    const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
    auto max0 = hn::LoadU(d, s);
    auto max1 = max0;
    for (std::int64_t j = 0; j + 2 * lanes <= columns_; j += 2 * lanes) {
      max0 = hn::Max(max0, hn::LoadU(d, s + j));
      max1 = hn::Max(max1, hn::LoadU(d, s + j + lanes));
    }
    return max_of(d, hn::Max(max0, max1));
  }

  ScoreRow score_row(const Part& part, std::int64_t query) const {
    return {plan_, sequence_, tensors_.score, item_.batch, item_.head, query, part.first_key, part.columns.size()};
  }

  // s <- 2^(factor s - subtract), in place and, for bfloat16 products, rounded into `weights`. Returns the sum.
  float exponentials(float* HWY_RESTRICT s, std::int64_t count, float factor, float subtract,
                     const Operand& weights) const {
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
        Arithmetic::store_pairs(p0, p1, weights.at(j / 2));
        if (drops_) {
          hn::StoreU(p0, d, s + j);
          hn::StoreU(p1, d, s + j + lanes);
        }
      }
    }
    return sum_of(d, hn::Add(sum0, sum1));
  }

  void drop(const ScoreRow& row, float* HWY_RESTRICT s, const Operand& weights) const {
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
        Arithmetic::store_pairs(p0, p1, weights.at(j / 2));
      }
    }
  }

  // O <- rescale O + P V, the rescale with the first part alone.
  template <Update kUpdate>
  void add_values(const Part& part) {
    Product product;
    product.a = weights_.at(part.columns.begin / kUnit);
    product.a_stride = weight_stride();
    product.b = packed(plan_.values).at(part.first_key / kUnit * kPanel);
    product.b_stride = kPanel;
    product.b_panel_stride = sequence_.padded_keys / kUnit * kPanel;
    product.c = out_ + local_ * plan_.padded_v;
    product.c_stride = plan_.padded_v;
    product.rows = rows_.size();
    product.columns = plan_.padded_v;
    product.depth = part.columns.size() / kUnit;
    product.scale = rescale_;
    product.joined = joined_if(part.special_values);
    multiply<false, kUpdate>(product);
  }

  // A hidden value that is NaN or infinite must not meet its weight of zero: each row adds up the values it sees alone.
  void add_values_by_row(const Part& part, bool rescale) {
    const auto values = key_rows_of(tensors_.v, tensors_.page_table, item_.batch, sequence_.span.key_row, head_kv_);
    for (std::int64_t r = 0; r < rows_.size(); ++r) {
      float* out = out_ + (local_ + r) * plan_.padded_v;
      for (std::int64_t c = 0; c < plan_.problem.dim_v; ++c) {
        float sum = 0;
        for_each_visible(schedule_, rows_.begin + r, part.first_key, part.columns.size(), [&](Range seen) {
          for (std::int64_t j = seen.begin; j < seen.end; ++j) {
            const void* row = values.at(part.first_key + j);
            sum += weight_at(r, part.columns.begin + j) * static_cast<float>(load_element(row, values.dtype, c));
          }
        });
        out[c] = (rescale ? rescale_[r] * out[c] : out[c]) + sum;
      }
    }
  }

  float weight_at(std::int64_t r, std::int64_t column) const {
    if constexpr (kUnit == 1) {
      return scores_[r * plan_.layout.score_stride + column];
    } else {
      float weight = 0;
      for (int plane = kPlanes - 1; plane >= 0; --plane) {
        const Unit pair = weights_.of_plane(plane)[r * weight_stride() + column / 2];
        weight += bfloat16_to_float(static_cast<std::uint16_t>(column % 2 == 0 ? pair : pair >> 16));
      }
      return weight;
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
  bool drops_;
  std::array<bool, FlashPlan::kMostTilesPerItem> special_queries_{};  // of each query tile: some are NaN or infinite
  Operand q_;
  float* scores_;
  Operand weights_;
  float* out_;
  float* row_max_;
  float* row_sum_;
  float* rescale_;

  // Of the current visit.
  Range rows_;              // queries
  std::int64_t local_ = 0;  // of the first of them, among the rows of the item
  std::array<Part, FlashPlan::kMostTilesPerVisit> parts_;
  std::int64_t part_count_ = 0;
  std::int64_t columns_ = 0;  // of the scores, in all parts
};
