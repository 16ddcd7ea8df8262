// FlashAttention backward for one item: a chunk of the keys of one (sequence, key head) against all queries that see
// it, key tile by key tile. dK and dV of a tile stay in cache while the query tiles stream past; dQ goes to this chunk's
// own partial, so that no sum depends on which thread ran when.
//
// Five products of 2 d FLOP a score, which bind unless AMX makes them; one exponential a score between them.

template <class Arithmetic>
class FlashBackward {
  using Unit = typename Arithmetic::Unit;
  static constexpr std::int64_t kUnit = Arithmetic::kDepthUnit;
  static constexpr int kPlanes = Arithmetic::kPlanes;
  static constexpr std::int64_t kMaxDim = FlashPlan::kMaxDim;

 public:
  FlashBackward(const FlashPlan& plan, const BackwardTensors& tensors, std::span<std::byte> workspace, int thread)
      : plan_(plan),
        tensors_(tensors),
        workspace_(workspace),
        scratch_(workspace.subspan(static_cast<std::size_t>(plan.scratch.offset_bytes + thread * plan.scratch_bytes),
                                   static_cast<std::size_t>(plan.scratch_bytes))),
        q_(plan.layout.q.in<Unit>(scratch_)),
        dout_(plan.layout.dout.in<Unit>(scratch_)),
        scores_(plan.layout.scores.in(scratch_)),
        dp_(plan.layout.dp.in(scratch_)),
        dk_(plan.layout.dk.in(scratch_)),
        dv_(plan.layout.dv.in(scratch_)) {
    const int threshold = plan.problem.dropout.threshold();
    drops_ = threshold > 0;
    kept_ = threshold == 256 ? 0.0F : 256.0F / static_cast<float>(256 - threshold);
  }

  void run(const FlashItem& item) {
    bind(item.batch, item.head);
    begin_partial(item);
    const std::int64_t first_tile = item.rows.begin / plan_.tile_k;
    const std::int64_t last_tile = item.rows.end / plan_.tile_k;
    for (std::int64_t key_tile = first_tile; key_tile < last_tile; ++key_tile) {
      run_key_tile(item, key_tile);
    }
    if (item.chunk == plan_.chunks - 1) {
      clear_unused_keys();
    }
  }

  // The part of dbias that the given sequences, heads, query tiles and key tiles are summed into.
  void run_bias(const BiasPart& part) {
    for_bias_ = true;
    const TensorView& dbias = tensors_.dbias;
    const std::int64_t rows = dbias.shape[2] == 1 ? 1 : plan_.tile_q;
    const std::int64_t columns = dbias.shape[3] == 1 ? 1 : plan_.tile_k;
    float* tile = plan_.layout.bias_tile.in(scratch_);
    std::fill(tile, tile + rows * columns, 0.0F);
    for (std::int64_t batch = part.batches.begin; batch < part.batches.end; ++batch) {
      for (std::int64_t head = part.heads.begin; head < part.heads.end; ++head) {
        bind(batch, head / plan_.problem.group_size());
        bind_head(head);
        add_bias_tiles(part, tile);
      }
    }
    store_bias_tile(part, tile, rows, columns);
  }

 private:
  Operand operand(const OperandSlot& slot) const { return slot.in<Unit>(scratch_); }

  Operand packed(const PackedOperand& packed) const {
    return packed_rows(plan_, packed, *sequence_, head_kv_, workspace_);
  }

  void bind(std::int64_t batch, std::int64_t head_kv) {
    batch_ = batch;
    head_kv_ = head_kv;
    sequence_ = &plan_.sequences[static_cast<std::size_t>(batch)];
  }

  void bind_head(std::int64_t head) {
    head_ = head;
    schedule_ = &plan_.schedule_of(*sequence_, head);
  }

  float* dq_partial(std::int64_t chunk, std::int64_t head) const {
    return plan_.dq_partials.in(workspace_) + plan_.dq_line(chunk, *sequence_, head) * plan_.padded_qk;
  }

  std::uint8_t* dq_begun(std::int64_t chunk, std::int64_t head) const {
    return plan_.dq_begun.in(workspace_) + plan_.dq_line(chunk, *sequence_, head);
  }

  // The first visit of a query tile clears its rows of this chunk's partial, where they are about to be added to.
  void begin_partial(const FlashItem& item) {
    const std::int64_t group = plan_.problem.group_size();
    for (std::int64_t member = 0; member < group; ++member) {
      std::uint8_t* begun = dq_begun(item.chunk, head_kv_ * group + member);
      std::fill(begun, begun + sequence_->span.queries, std::uint8_t{0});
    }
  }

  void begin_rows_of_dq(std::int64_t chunk) {
    std::uint8_t& begun = dq_begun(chunk, head_)[rows_.begin];
    if (begun == 0) {
      std::fill(dq_ + rows_.begin * plan_.padded_qk, dq_ + rows_.end * plan_.padded_qk, 0.0F);
      begun = 1;
    }
  }

  void clear_unused_keys() {
    const auto dk = rows_of(tensors_.dk, batch_, sequence_->span.key_row, head_kv_);
    const auto dv = rows_of(tensors_.dv, batch_, sequence_->span.key_row, head_kv_);
    for (std::int64_t row = sequence_->span.keys; row < sequence_->stored_keys; ++row) {
      std::memset(dk.at(row), 0, static_cast<std::size_t>(plan_.problem.dim_qk * dtype_bytes(dk.dtype)));
      std::memset(dv.at(row), 0, static_cast<std::size_t>(plan_.problem.dim_v * dtype_bytes(dv.dtype)));
    }
  }

  void run_key_tile(const FlashItem& item, std::int64_t key_tile) {
    const Problem& problem = plan_.problem;
    std::fill(dk_, dk_ + keys_of_sums() * plan_.padded_qk, 0.0F);
    std::fill(dv_, dv_ + keys_of_sums() * plan_.padded_v, 0.0F);
    for (std::int64_t member = 0; member < problem.group_size(); ++member) {
      bind_head(head_kv_ * problem.group_size() + member);
      dq_ = dq_partial(item.chunk, head_);
      for (auto visit = schedule_->next_in_column(key_tile, 0); visit;) {
        const auto next = schedule_->next_in_column(key_tile, visit->index + 1);
        next_row_ = next ? next->index * plan_.tile_q : sequence_->span.queries;
        prepare_tile(visit->index, key_tile, visit->kind);
        begin_rows_of_dq(item.chunk);
        add_gradients(dq_);
        visit = next;
      }
    }
    store_key_tile(key_tile);
  }

  // dK was summed from Q with q_factor folded in; d(score)/d(product) is the scale, in natural units.
  void store_key_tile(std::int64_t key_tile) {
    const Problem& problem = plan_.problem;
    const std::int64_t first = key_tile * plan_.tile_k;
    const std::int64_t count = std::min(plan_.tile_k, sequence_->span.keys - first);
    const auto dk = rows_of(tensors_.dk, batch_, sequence_->span.key_row, head_kv_);
    const auto dv = rows_of(tensors_.dv, batch_, sequence_->span.key_row, head_kv_);
    const float dk_factor = problem.softmax_scale() == 0.0F ? 0.0F : problem.softmax_scale() / plan_.q_factor;
    store_sums(dk_, plan_.padded_qk, count, [&](std::int64_t r, const float* sums) {
      store_row(sums, dk.dtype, problem.dim_qk, dk_factor, dk.at(first + r));
    });
    store_sums(dv_, plan_.padded_v, count, [&](std::int64_t r, const float* sums) {
      store_row(sums, dv.dtype, problem.dim_v, 1.0F, dv.at(first + r));
    });
  }

  // store(row, sums of its key) for the first `count` rows of dk_ or dv_.
  template <class Store>
  void store_sums(const float* sums, std::int64_t padded_dim, std::int64_t count, const Store& store) const {
    if constexpr (kTakesTransposedA) {
      for (std::int64_t r = 0; r < count; ++r) {
        store(r, sums + r * padded_dim);
      }
    } else {
      constexpr std::int64_t kBlock = 8;
      alignas(64) float rows[kBlock * kMaxDim];
      for (std::int64_t first = 0; first < count; first += kBlock) {
        transpose(sums + first, plan_.layout.sum_stride, padded_dim, kBlock, rows, kMaxDim);
        for (std::int64_t r = first; r < std::min(first + kBlock, count); ++r) {
          store(r, rows + (r - first) * kMaxDim);
        }
      }
    }
  }

  // `rows`, a multiple of 8, by `columns` elements.
  template <class T>
  static void transpose(const T* source, std::int64_t stride, std::int64_t rows, std::int64_t columns, T* target,
                        std::int64_t target_stride) {
    constexpr std::int64_t kBlock = 8;
    for (std::int64_t row = 0; row < rows; row += kBlock) {
      const T* lines[kBlock];
      for (std::int64_t j = 0; j < kBlock; ++j) {
        lines[j] = source + (row + j) * stride;
      }
      transpose_rows<kBlock>(lines, columns, target_stride, target + row);
    }
  }

  // Of the sum of dK or dV for column c of key `key` of the tile.
  std::int64_t sum_index(std::int64_t key, std::int64_t c, std::int64_t padded_dim) const {
    return kTakesTransposedA ? key * padded_dim + c : c * plan_.layout.sum_stride + key;
  }

  std::int64_t keys_of_sums() const { return kTakesTransposedA ? plan_.tile_k : plan_.layout.sum_stride; }

  // Scores, weights and their gradients of one tile, ready for the products. Sets rows_, columns_ and first_key_.
  void prepare_tile(std::int64_t tile, std::int64_t key_tile, TileKind kind) {
    rows_ = {tile * plan_.tile_q, std::min((tile + 1) * plan_.tile_q, sequence_->span.queries)};
    tile_first_key_ = key_tile * plan_.tile_k;
    columns_ = panel_columns(kind);
    first_key_ = tile_first_key_ + columns_.begin;
    load_queries();
    const bool special_tile = special_ || plan_.special_keys.in(workspace_)[special_index(key_tile)] != 0;
    by_row_ = special_tile && (kind == TileKind::partial || any_row_sees_nothing());
    const bool special_values = plan_.special_values.in(workspace_)[special_index(key_tile)] != 0;
    joined_ = kPlanes > 1 && (special_tile || special_values) ? plan_.layout.joined.in(scratch_) : nullptr;

    multiply_by_keys(plan_, q_, plan_.layout.q_stride, packed(plan_.keys_t).at(first_key_ * plan_.units_qk),
                     plan_.units_qk, rows_.size(), columns_.size(), joined_, scores_);
    multiply_by_keys(plan_, dout_, plan_.layout.dout_stride, packed(plan_.values_t).at(first_key_ * plan_.units_v),
                     plan_.units_v, rows_.size(), columns_.size(), joined_, dp_);
    const bool masked = kind == TileKind::partial || first_key_ + columns_.size() > sequence_->span.keys;
    const auto q = rows_of(tensors_.q, batch_, sequence_->span.query_row, head_);
    const auto dout = rows_of(tensors_.dout, batch_, sequence_->span.query_row, head_);
    for (std::int64_t r = 0; r < rows_.size(); ++r) {
      prefetch_for_products(q, dout, r);
      if (keeps_floats()) {
        weigh_row(r, masked);
      } else if (r % 2 == 0) {
        weigh_two_rows(r, masked);
      }
    }
  }

  // Behind the mask, or because every score is -inf: the gradients are zero, also where 0 would meet an infinity.
  bool row_sees_nothing(std::int64_t query) const {
    const float lse = plan_.lse_log2.in(workspace_)[plan_.query_line(*sequence_, head_) + query];
    return lse == -std::numeric_limits<float>::infinity();
  }

  bool any_row_sees_nothing() const {
    bool any = false;
    for (std::int64_t query = rows_.begin; query < rows_.end; ++query) {
      any = any || row_sees_nothing(query);
    }
    return any;
  }

  std::int64_t special_index(std::int64_t key_tile) const {
    return plan_.special_index(*sequence_, head_kv_, key_tile);
  }

  Range panel_columns(TileKind kind) const {
    const std::int64_t keys = std::min(plan_.tile_k, sequence_->span.keys - tile_first_key_);
    return kind == TileKind::full ? Range{0, round_up(keys, kPanel)}
                                  : visible_panels(*schedule_, rows_, tile_first_key_, keys, kPanel);
  }

  void load_queries() {
    const Problem& problem = plan_.problem;
    const auto q = rows_of(tensors_.q, batch_, sequence_->span.query_row, head_);
    const auto dout = rows_of(tensors_.dout, batch_, sequence_->span.query_row, head_);
    special_ = false;
    for (std::int64_t r = 0; r < rows_.size(); ++r) {
      prefetch_ahead(q, rows_.begin + r, rows_.end, problem.dim_qk);
      prefetch_ahead(dout, rows_.begin + r, rows_.end, problem.dim_v);
      load_side(q.at(rows_.begin + r), q.dtype, problem.dim_qk, plan_.q_factor, q_.at(r * plan_.layout.q_stride),
                plan_.layout.q_stride);
      load_side(dout.at(rows_.begin + r), dout.dtype, problem.dim_v, 1.0F, dout_.at(r * plan_.layout.dout_stride),
                plan_.layout.dout_stride);
    }
    if constexpr (kUnit == 2) {
      interleave(q_, plan_.layout.q_stride, plan_.padded_qk, operand(plan_.layout.q_pairs), plan_.padded_qk);
      interleave(dout_, plan_.layout.dout_stride, plan_.padded_v, operand(plan_.layout.dout_pairs), plan_.padded_v);
    }
    if constexpr (!kTakesTransposedA) {
      transpose_pairs(plan_.layout.q_pairs, plan_.padded_qk, plan_.layout.q_pairs_t);
      transpose_pairs(plan_.layout.dout_pairs, plan_.padded_v, plan_.layout.dout_pairs_t);
    }
  }

  void load_side(const void* row, DType dtype, std::int64_t dim, float factor, const Operand& target,
                 std::int64_t stride) {
    load_units<Arithmetic>(row, dtype, dim, factor, target);
    const std::int64_t units = ceil_div(dim, kUnit);
    for (int plane = 0; plane < kPlanes; ++plane) {
      std::fill(target.of_plane(plane) + units, target.of_plane(plane) + stride, Unit{});
    }
    special_ = special_ || units_special(target.units, units);
  }

  // Rows 2i and 2i + 1 of a tile of bfloat16 pairs along the columns, as pairs along the rows.
  void interleave(const Operand& rows, std::int64_t stride, std::int64_t columns, const Operand& pairs,
                  std::int64_t pair_stride) const {
    for (int plane = 0; plane < kPlanes; ++plane) {
      for (std::int64_t r = 0; r < rows_.size(); r += 2) {
        const Unit* even = rows.of_plane(plane) + r * stride;
        Unit* target = pairs.of_plane(plane) + r / 2 * pair_stride;
        if (r + 1 < rows_.size()) {
          Arithmetic::pair_rows(even, even + stride, columns, target);
        } else {
          Arithmetic::pair_with_zeros(even, columns, target);
        }
      }
    }
  }

  // What stands behind the last pair of rows is transposed with them, and not multiplied.
  void transpose_pairs(const OperandSlot& pairs, std::int64_t columns, const OperandSlot& transposed) const {
    for (int plane = 0; plane < kPlanes; ++plane) {
      transpose(operand(pairs).of_plane(plane), columns, round_up(ceil_div(rows_.size(), 2), 8), columns,
                operand(transposed).of_plane(plane), plan_.layout.pair_stride);
    }
  }

  using Floats = hn::Vec<hn::ScalableTag<float>>;
  struct WeighedScores {
    Floats p;
    Floats ds;
  };
  struct RowOfWeights {
    Floats scale, lse, delta;
    const float* s;
    const float* dp;
    const float* drop;        // or null
    const float* derivative;  // or null
  };

  // Of one vector of scores.
  static HWY_INLINE WeighedScores weigh(const RowOfWeights& row, std::int64_t j) {
    const hn::ScalableTag<float> d;
    auto p = exp2_of(d, hn::MulSub(hn::LoadU(d, row.s + j), row.scale, row.lse));
    auto ds = hn::LoadU(d, row.dp + j);
    if (row.drop != nullptr) {
      const auto weight = hn::LoadU(d, row.drop + j);
      ds = hn::Mul(p, hn::MulSub(ds, weight, row.delta));
      p = hn::Mul(p, weight);
    } else {
      ds = hn::Mul(p, hn::Sub(ds, row.delta));
    }
    if (row.derivative != nullptr) {
      ds = hn::Mul(ds, hn::LoadU(d, row.derivative + j));
    }
    return {p, ds};
  }

  // Modifies the scores of a row; P and dS are then to be had of them.
  RowOfWeights begin_row(std::int64_t r) {
    const hn::ScalableTag<float> d;
    const std::int64_t query = rows_.begin + r;
    float* s = scores_ + r * plan_.layout.score_stride;
    float* derivative = bends_scores(plan_.problem) && !for_bias_
                            ? plan_.layout.derivative.in(scratch_) + r * plan_.layout.score_stride
                            : nullptr;
    const ScoreRow row{plan_, *sequence_, tensors_.score, batch_, head_, query, first_key_, columns_.size()};
    if (plan_.modified) {
      modify_scores(row, s, plan_.layout.row_a.in(scratch_), derivative);
    }
    float* drop = nullptr;
    if (drops_) {
      drop = plan_.layout.row_b.in(scratch_) + (kUnit == 2 ? r % 2 : 0) * plan_.tile_k;
      dropout_row(row, kept_, drop);
    }
    const std::int64_t line = plan_.query_line(*sequence_, head_) + query;
    const float lse = plan_.lse_log2.in(workspace_)[line];
    return {hn::Set(d, plan_.modified ? 1.0F : plan_.score_factor),
            hn::Set(d, row_sees_nothing(query) ? 0.0F : lse),
            hn::Set(d, plan_.delta.in(workspace_)[line]),
            s,
            dp_ + r * plan_.layout.score_stride,
            drop,
            derivative};
  }

  // P = 2^(S - LSE) and dS = P (dP - D) of one row, in place of S and dP; zero where the mask hides. dS is with respect
  // to the score before softcap and score function, or, for dbias, after them.
  void weigh_row(std::int64_t r, bool masked) {
    const hn::ScalableTag<float> d;
    const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
    const std::int64_t query = rows_.begin + r;
    const std::int64_t count = columns_.size();
    const RowOfWeights row = begin_row(r);
    float* HWY_RESTRICT p = scores_ + r * plan_.layout.score_stride;
    float* HWY_RESTRICT ds = dp_ + r * plan_.layout.score_stride;
    for (std::int64_t j = 0; j < count; j += lanes) {
      const WeighedScores weighed = weigh(row, j);
      hn::StoreU(weighed.p, d, p + j);
      hn::StoreU(weighed.ds, d, ds + j);
    }
    if (row_sees_nothing(query)) {
      std::fill(p, p + count, 0.0F);
      std::fill(ds, ds + count, 0.0F);
    } else if (masked) {
      fill_hidden(*schedule_, query, first_key_, count, 0.0F, p);
      fill_hidden(*schedule_, query, first_key_, count, 0.0F, ds);
    }
  }

  // The same of rows r and r + 1, if there is one, as pairs of bfloat16: P and dS along the queries for dV and dK, dS along the
  // keys for dQ.
  void weigh_two_rows(std::int64_t r, bool masked) {
    if constexpr (kUnit == 2) {
      const hn::ScalableTag<float> d;
      const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
      const std::int64_t last = std::min(r + 1, rows_.size() - 1);
      const bool as_floats =
          masked || last == r || row_sees_nothing(rows_.begin + r) || row_sees_nothing(rows_.begin + last);
      if (as_floats) {
        weigh_row(r, masked);
        if (last > r) {
          weigh_row(last, masked);
        } else {
          std::fill_n(scores_ + (r + 1) * plan_.layout.score_stride, columns_.size(), 0.0F);
          std::fill_n(dp_ + (r + 1) * plan_.layout.score_stride, columns_.size(), 0.0F);
        }
        for (std::int64_t j = 0; j < columns_.size(); j += 2 * lanes) {
          store_two_rows(r, j, weighed_floats(r, j), weighed_floats(r, j + lanes), weighed_floats(r + 1, j),
                         weighed_floats(r + 1, j + lanes));
        }
        return;
      }
      const RowOfWeights even = begin_row(r);
      const RowOfWeights odd = begin_row(r + 1);
      for (std::int64_t j = 0; j < columns_.size(); j += 2 * lanes) {
        store_two_rows(r, j, weigh(even, j), weigh(even, j + lanes), weigh(odd, j), weigh(odd, j + lanes));
      }
    }
  }

  WeighedScores weighed_floats(std::int64_t r, std::int64_t j) const {
    const hn::ScalableTag<float> d;
    const std::int64_t index = r * plan_.layout.score_stride + j;
    return {hn::LoadU(d, scores_ + index), hn::LoadU(d, dp_ + index)};
  }

  // Two vectors from column j on of each row.
  HWY_INLINE void store_two_rows(std::int64_t r, std::int64_t j, const WeighedScores& even0, const WeighedScores& even1,
                                 const WeighedScores& odd0, const WeighedScores& odd1) const {
    constexpr std::int64_t kLanes = Arithmetic::kLanes;
    const std::int64_t pair = r / 2 * plan_.layout.score_stride + j;
    const std::int64_t row = r * plan_.layout.weight_stride + j / 2;
    const Operand p_pairs = operand(plan_.layout.p_pairs).at(pair);
    const Operand ds_pairs = operand(plan_.layout.ds_pairs).at(pair);
    const Operand ds = operand(plan_.layout.ds).at(row);
    Arithmetic::store_pairs_of_rows(even0.p, odd0.p, p_pairs);
    Arithmetic::store_pairs_of_rows(even1.p, odd1.p, p_pairs.at(kLanes));
    Arithmetic::store_pairs_of_rows(even0.ds, odd0.ds, ds_pairs);
    Arithmetic::store_pairs_of_rows(even1.ds, odd1.ds, ds_pairs.at(kLanes));
    Arithmetic::store_pairs(even0.ds, even1.ds, ds);
    Arithmetic::store_pairs(odd0.ds, odd1.ds, ds.at(plan_.layout.weight_stride));
  }

  // Whether P and dS are read as they were before rounding to bfloat16.
  bool keeps_floats() const { return kUnit == 1 || by_row_ || for_bias_; }

  // Into L2, while the ports of the products are idle: the row of dQ that this tile adds to, and those of Q and dO that
  // the next tile begins with.
  void prefetch_for_products(const Rows<const void>& q, const Rows<const void>& dout, std::int64_t r) const {
    constexpr std::int64_t kLine = 16;
    if (!for_bias_) {
      const float* dq = dq_ + (rows_.begin + r) * plan_.padded_qk;
      for (std::int64_t c = 0; c < plan_.padded_qk; c += kLine) {
        __builtin_prefetch(dq + c, 1, 2);
      }
    }
    const std::int64_t row = next_row_ + r;
    prefetch_rows(q, row, std::min(row + 1, sequence_->span.queries), plan_.problem.dim_qk);
    prefetch_rows(dout, row, std::min(row + 1, sequence_->span.queries), plan_.problem.dim_v);
  }

  void add_gradients(float* dq) {
    dq += rows_.begin * plan_.padded_qk;
    if (by_row_) {
      add_gradients_by_row(dq);
      return;
    }
    if constexpr (kTakesTransposedA) {
      add_key_gradients();
    } else {
      add_transposed_key_gradients();
    }
    Product product;
    product.joined = joined_;
    product.a = kUnit == 1 ? as_units(dp_) : operand(plan_.layout.ds);
    product.a_stride = kUnit == 1 ? plan_.layout.score_stride : plan_.layout.weight_stride;
    product.b = packed(plan_.keys).at(first_key_ / kUnit * kPanel);
    product.b_stride = kPanel;
    product.b_panel_stride = sequence_->padded_keys / kUnit * kPanel;
    product.c = dq;
    product.c_stride = plan_.padded_qk;
    product.rows = rows_.size();
    product.columns = plan_.padded_qk;
    product.depth = columns_.size() / kUnit;
    multiply<false, Update::kAdd>(product);
  }

  // dV += P^T dO and dK += dS^T Q.
  void add_key_gradients() {
    Product product;
    product.rows = columns_.size();
    product.depth = ceil_div(rows_.size(), kUnit);
    product.a_stride = plan_.layout.score_stride;
    product.b_panel_stride = kPanel;

    product.a = kUnit == 1 ? as_units(scores_) : operand(plan_.layout.p_pairs);
    product.b = kUnit == 1 ? dout_ : operand(plan_.layout.dout_pairs);
    product.b_stride = kUnit == 1 ? plan_.layout.dout_stride : plan_.padded_v;
    product.c = dv_ + columns_.begin * plan_.padded_v;
    product.c_stride = plan_.padded_v;
    product.columns = plan_.padded_v;
    multiply<true, Update::kAdd>(product);

    product.a = kUnit == 1 ? as_units(dp_) : operand(plan_.layout.ds_pairs);
    product.b = kUnit == 1 ? q_ : operand(plan_.layout.q_pairs);
    product.b_stride = kUnit == 1 ? plan_.layout.q_stride : plan_.padded_qk;
    product.c = dk_ + columns_.begin * plan_.padded_qk;
    product.c_stride = plan_.padded_qk;
    product.columns = plan_.padded_qk;
    multiply<true, Update::kAdd>(product);
  }

  // dV^T += dO^T P and dK^T += Q^T dS.
  void add_transposed_key_gradients() {
    Product product;
    product.joined = joined_;
    product.a_stride = plan_.layout.pair_stride;
    product.b_stride = plan_.layout.score_stride;
    product.b_panel_stride = kPanel;
    product.c_stride = plan_.layout.sum_stride;
    product.columns = columns_.size();
    product.depth = ceil_div(rows_.size(), kUnit);

    product.a = operand(plan_.layout.dout_pairs_t);
    product.b = operand(plan_.layout.p_pairs);
    product.c = dv_ + columns_.begin;
    product.rows = plan_.padded_v;
    multiply<false, Update::kAdd>(product);

    product.a = operand(plan_.layout.q_pairs_t);
    product.b = operand(plan_.layout.ds_pairs);
    product.c = dk_ + columns_.begin;
    product.rows = plan_.padded_qk;
    multiply<false, Update::kAdd>(product);
  }

  static Operand as_units(float* values) { return {reinterpret_cast<Unit*>(values), 0}; }

  // Where a NaN or an infinity stands behind the mask: each row meets the keys that it sees, and no others.
  void add_gradients_by_row(float* dq) {
    const Problem& problem = plan_.problem;
    const auto q = rows_of(tensors_.q, batch_, sequence_->span.query_row, head_);
    const auto k = rows_of(tensors_.k, batch_, sequence_->span.key_row, head_kv_);
    const auto dout = rows_of(tensors_.dout, batch_, sequence_->span.query_row, head_);
    const auto element = [](const auto& rows, std::int64_t row, std::int64_t column) {
      return static_cast<float>(load_element(rows.at(row), rows.dtype, column));
    };
    for (std::int64_t r = 0; r < rows_.size(); ++r) {
      if (row_sees_nothing(rows_.begin + r)) {
        continue;
      }
      for_each_visible(*schedule_, rows_.begin + r, first_key_, columns_.size(), [&](Range seen) {
        for (std::int64_t j = seen.begin; j < seen.end; ++j) {
          const float p = scores_[r * plan_.layout.score_stride + j];
          const float ds = dp_[r * plan_.layout.score_stride + j];
          for (std::int64_t c = 0; c < problem.dim_v; ++c) {
            dv_[sum_index(columns_.begin + j, c, plan_.padded_v)] += p * element(dout, rows_.begin + r, c);
          }
          for (std::int64_t c = 0; c < problem.dim_qk; ++c) {
            dk_[sum_index(columns_.begin + j, c, plan_.padded_qk)] +=
                ds * plan_.q_factor * element(q, rows_.begin + r, c);
            dq[r * plan_.padded_qk + c] += ds * element(k, first_key_ + j, c);
          }
        }
      });
    }
  }

  void add_bias_tiles(const BiasPart& part, float* tile) {
    const TensorView& dbias = tensors_.dbias;
    const std::int64_t row_step = dbias.shape[2] == 1 ? 0 : dbias.shape[3] == 1 ? 1 : plan_.tile_k;
    const std::int64_t column_step = dbias.shape[3] == 1 ? 0 : 1;
    const std::int64_t last_query = std::min(part.query_tiles.end, schedule_->query_tiles());
    const std::int64_t last_key = std::min(part.key_tiles.end, schedule_->key_tiles());
    for (std::int64_t query_tile = part.query_tiles.begin; query_tile < last_query; ++query_tile) {
      for (std::int64_t key_tile = part.key_tiles.begin; key_tile < last_key; ++key_tile) {
        const auto kind = schedule_->visit(query_tile, key_tile);
        if (!kind) {
          continue;
        }
        prepare_tile(query_tile, key_tile, *kind);
        for (std::int64_t r = 0; r < rows_.size(); ++r) {
          const float* ds = dp_ + r * plan_.layout.score_stride;
          float* target = tile + r * row_step + columns_.begin * column_step;
          for (std::int64_t j = 0; j < columns_.size(); ++j) {
            target[j * column_step] += ds[j];
          }
        }
      }
    }
  }

  void store_bias_tile(const BiasPart& part, const float* tile, std::int64_t rows, std::int64_t columns) const {
    const TensorView& dbias = tensors_.dbias;
    const std::int64_t first_row = dbias.shape[2] == 1 ? 0 : part.query_tiles.begin * plan_.tile_q;
    const std::int64_t first_column = dbias.shape[3] == 1 ? 0 : part.key_tiles.begin * plan_.tile_k;
    const std::int64_t start = (dbias.shape[0] == 1 ? 0 : part.batches.begin * dbias.strides[0]) +
                               (dbias.shape[1] == 1 ? 0 : part.heads.begin * dbias.strides[1]);
    for (std::int64_t r = 0; r < std::min(rows, dbias.shape[2] - first_row); ++r) {
      for (std::int64_t j = 0; j < std::min(columns, dbias.shape[3] - first_column); ++j) {
        const std::int64_t offset = start + (first_row + r) * dbias.strides[2] + (first_column + j) * dbias.strides[3];
        store_element(dbias.data, dbias.dtype, offset, tile[r * columns + j]);
      }
    }
  }

  const FlashPlan& plan_;
  const BackwardTensors& tensors_;
  std::span<std::byte> workspace_;
  std::span<std::byte> scratch_;
  Operand q_;
  Operand dout_;
  float* scores_;
  float* dp_;
  float* dk_;
  float* dv_;
  bool drops_ = false;
  float kept_ = 1.0F;
  bool for_bias_ = false;

  const FlashSequence* sequence_ = nullptr;
  const TileSchedule* schedule_ = nullptr;
  std::int64_t batch_ = 0;
  std::int64_t head_ = 0;
  std::int64_t head_kv_ = 0;
  float* dq_ = nullptr;        // of the chunk and head
  std::int64_t next_row_ = 0;  // the first query of the tile after this one
  Range rows_;                 // queries of the tile
  Range columns_;              // panels of the tile that are computed, from its first key on
  std::int64_t tile_first_key_ = 0;
  std::int64_t first_key_ = 0;  // of columns_
  bool special_ = false;        // the tile's Q or dO holds a NaN or an infinity
  bool by_row_ = false;
  float* joined_ = nullptr;  // for products of operands that hold a NaN or an infinity
};
