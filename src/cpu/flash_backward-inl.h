// FlashAttention backward for one item: a chunk of the keys of one (sequence, key head) against all queries that see
// it, key tile by key tile. dK and dV of a tile stay in cache while the query tiles stream past; dQ goes to this chunk's
// own partial, so that no sum depends on which thread ran when.
//
// Five products of 2 d FLOP a score, bound by the FMA ports; one exponential a score between them.

template <class Arithmetic>
class FlashBackward {
  using Unit = typename Arithmetic::Unit;
  static constexpr std::int64_t kUnit = Arithmetic::kDepthUnit;

 public:
  FlashBackward(const FlashPlan& plan, const BackwardTensors& tensors, std::span<std::byte> workspace, int thread)
      : plan_(plan),
        tensors_(tensors),
        workspace_(workspace),
        scratch_(workspace.subspan(static_cast<std::size_t>(plan.scratch.offset_bytes + thread * plan.scratch_bytes),
                                   static_cast<std::size_t>(plan.scratch_bytes))),
        q_(unit_slot(plan.layout.q)),
        dout_(unit_slot(plan.layout.dout)),
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
    clear_partial(item);
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
  Unit* unit_slot(const WorkspaceSlot<float>& slot) const { return reinterpret_cast<Unit*>(slot.in(scratch_)); }

  const Unit* packed(const PackedOperand& operand) const {
    return packed_rows(plan_, operand, *sequence_, head_kv_, workspace_);
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
    const std::int64_t lines = plan_.problem.total_q() * plan_.problem.heads_q;
    return plan_.dq_partials.in(workspace_) + (chunk * lines + plan_.query_line(*sequence_, head)) * plan_.padded_qk;
  }

  void clear_partial(const FlashItem& item) {
    const std::int64_t group = plan_.problem.group_size();
    for (std::int64_t member = 0; member < group; ++member) {
      float* partial = dq_partial(item.chunk, head_kv_ * group + member);
      std::fill(partial, partial + sequence_->span.queries * plan_.padded_qk, 0.0F);
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
    std::fill(dk_, dk_ + plan_.tile_k * plan_.padded_qk, 0.0F);
    std::fill(dv_, dv_ + plan_.tile_k * plan_.padded_v, 0.0F);
    for (std::int64_t member = 0; member < problem.group_size(); ++member) {
      bind_head(head_kv_ * problem.group_size() + member);
      dq_ = dq_partial(item.chunk, head_);
      for (auto visit = schedule_->next_in_column(key_tile, 0); visit;) {
        const auto next = schedule_->next_in_column(key_tile, visit->index + 1);
        next_row_ = next ? next->index * plan_.tile_q : sequence_->span.queries;
        prepare_tile(visit->index, key_tile, visit->kind);
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
    for (std::int64_t r = 0; r < count; ++r) {
      store_row(dk_ + r * plan_.padded_qk, dk.dtype, problem.dim_qk, dk_factor, dk.at(first + r));
      store_row(dv_ + r * plan_.padded_v, dv.dtype, problem.dim_v, 1.0F, dv.at(first + r));
    }
  }

  // Scores, weights and their gradients of one tile, ready for the products. Sets rows_, columns_ and first_key_.
  void prepare_tile(std::int64_t tile, std::int64_t key_tile, TileKind kind) {
    rows_ = {tile * plan_.tile_q, std::min((tile + 1) * plan_.tile_q, sequence_->span.queries)};
    tile_first_key_ = key_tile * plan_.tile_k;
    columns_ = panel_columns(kind);
    first_key_ = tile_first_key_ + columns_.begin;
    load_queries();
    const bool special_tile = special_ || plan_.special_keys.in(workspace_)[special_index(key_tile)] != 0;
    by_row_ = special_tile && (kind == TileKind::partial || any_row_sees_nothing());

    multiply_by_keys(plan_, q_, plan_.layout.q_stride, packed(plan_.keys_t) + first_key_ * plan_.units_qk,
                     plan_.units_qk, rows_.size(), columns_.size(), scores_);
    multiply_by_keys(plan_, dout_, plan_.layout.dout_stride, packed(plan_.values_t) + first_key_ * plan_.units_v,
                     plan_.units_v, rows_.size(), columns_.size(), dp_);
    const bool masked = kind == TileKind::partial || first_key_ + columns_.size() > sequence_->span.keys;
    const auto q = rows_of(tensors_.q, batch_, sequence_->span.query_row, head_);
    const auto dout = rows_of(tensors_.dout, batch_, sequence_->span.query_row, head_);
    for (std::int64_t r = 0; r < rows_.size(); ++r) {
      prefetch_for_products(q, dout, r);
      weigh_row(r, masked);
    }
    if constexpr (kUnit == 2) {
      round_to_pairs();
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
      load_side(q.at(rows_.begin + r), q.dtype, problem.dim_qk, plan_.q_factor, q_ + r * plan_.layout.q_stride,
                plan_.layout.q_stride);
      load_side(dout.at(rows_.begin + r), dout.dtype, problem.dim_v, 1.0F, dout_ + r * plan_.layout.dout_stride,
                plan_.layout.dout_stride);
    }
    if constexpr (kUnit == 2) {
      interleave(q_, plan_.layout.q_stride, plan_.padded_qk, unit_slot(plan_.layout.q_pairs));
      interleave(dout_, plan_.layout.dout_stride, plan_.padded_v, unit_slot(plan_.layout.dout_pairs));
    }
  }

  void load_side(const void* row, DType dtype, std::int64_t dim, float factor, Unit* target, std::int64_t stride) {
    load_units<Arithmetic>(row, dtype, dim, factor, target);
    const std::int64_t units = ceil_div(dim, kUnit);
    std::fill(target + units, target + stride, Unit{});
    special_ = special_ || units_special(target, units);
  }

  // Rows 2i and 2i + 1 of a tile of bfloat16 pairs along the columns, as pairs along the rows.
  void interleave(const Unit* rows, std::int64_t stride, std::int64_t columns, Unit* pairs) const {
    for (std::int64_t r = 0; r < rows_.size(); r += 2) {
      const auto* even = reinterpret_cast<const std::uint16_t*>(rows + r * stride);
      const auto* odd = reinterpret_cast<const std::uint16_t*>(rows + (r + 1) * stride);
      const std::uint32_t keep_odd = r + 1 < rows_.size() ? 0xFFFF0000U : 0U;
      auto* HWY_RESTRICT target = reinterpret_cast<std::uint32_t*>(pairs + r / 2 * columns);
      for (std::int64_t c = 0; c < columns; ++c) {
        target[c] = even[c] | ((static_cast<std::uint32_t>(odd[c]) << 16) & keep_odd);
      }
    }
  }

  // P = 2^(S - LSE) and dS = P (dP - D) of one row, in place of S and dP; zero where the mask hides. dS is with respect
  // to the score before softcap and score function, or, for dbias, after them.
  void weigh_row(std::int64_t r, bool masked) {
    const hn::ScalableTag<float> d;
    const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
    const std::int64_t query = rows_.begin + r;
    const std::int64_t count = columns_.size();
    float* HWY_RESTRICT s = scores_ + r * plan_.layout.score_stride;
    float* HWY_RESTRICT dp = dp_ + r * plan_.layout.score_stride;
    float* HWY_RESTRICT derivative = bends_scores(plan_.problem) && !for_bias_
                                         ? plan_.layout.derivative.in(scratch_) + r * plan_.layout.score_stride
                                         : nullptr;
    const ScoreRow row{plan_, *sequence_, tensors_.score, batch_, head_, query, first_key_, count};
    float factor = plan_.score_factor;
    if (plan_.modified) {
      modify_scores(row, s, plan_.layout.row_a.in(scratch_), derivative);
      factor = 1.0F;
    }
    const std::int64_t line = plan_.query_line(*sequence_, head_) + query;
    const float lse = plan_.lse_log2.in(workspace_)[line];
    const bool sees_nothing = row_sees_nothing(query);
    const auto scale = hn::Set(d, factor);
    const auto offset = hn::Set(d, sees_nothing ? 0.0F : lse);
    const auto delta = hn::Set(d, plan_.delta.in(workspace_)[line]);
    const float* HWY_RESTRICT drop = nullptr;
    if (drops_) {
      dropout_row(row, kept_, plan_.layout.row_b.in(scratch_));
      drop = plan_.layout.row_b.in(scratch_);
    }
    for (std::int64_t j = 0; j < count; j += lanes) {
      auto p = exp2_of(d, hn::MulSub(hn::LoadU(d, s + j), scale, offset));
      auto gradient = hn::LoadU(d, dp + j);
      if (drop != nullptr) {
        const auto weight = hn::LoadU(d, drop + j);
        gradient = hn::Mul(p, hn::MulSub(gradient, weight, delta));
        p = hn::Mul(p, weight);
      } else {
        gradient = hn::Mul(p, hn::Sub(gradient, delta));
      }
      if (derivative != nullptr) {
        gradient = hn::Mul(gradient, hn::LoadU(d, derivative + j));
      }
      hn::StoreU(p, d, s + j);
      hn::StoreU(gradient, d, dp + j);
    }
    if (sees_nothing) {
      std::fill(s, s + count, 0.0F);
      std::fill(dp, dp + count, 0.0F);
    } else if (masked) {
      fill_hidden(*schedule_, query, first_key_, count, 0.0F, s);
      fill_hidden(*schedule_, query, first_key_, count, 0.0F, dp);
    }
  }

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
    Product product;
    product.rows = columns_.size();
    product.depth = ceil_div(rows_.size(), kUnit);
    product.a_stride = plan_.layout.score_stride;
    product.b_panel_stride = kPanel;

    product.a = kUnit == 1 ? as_units(scores_) : unit_slot(plan_.layout.p_pairs);
    product.b = kUnit == 1 ? dout_ : unit_slot(plan_.layout.dout_pairs);
    product.b_stride = kUnit == 1 ? plan_.layout.dout_stride : plan_.padded_v;
    product.c = dv_ + columns_.begin * plan_.padded_v;
    product.c_stride = plan_.padded_v;
    product.columns = plan_.padded_v;
    multiply<true, Update::kAdd>(product);

    product.a = kUnit == 1 ? as_units(dp_) : unit_slot(plan_.layout.ds_pairs);
    product.b = kUnit == 1 ? q_ : unit_slot(plan_.layout.q_pairs);
    product.b_stride = kUnit == 1 ? plan_.layout.q_stride : plan_.padded_qk;
    product.c = dk_ + columns_.begin * plan_.padded_qk;
    product.c_stride = plan_.padded_qk;
    product.columns = plan_.padded_qk;
    multiply<true, Update::kAdd>(product);

    product.a = kUnit == 1 ? as_units(dp_) : unit_slot(plan_.layout.ds);
    product.a_stride = kUnit == 1 ? plan_.layout.score_stride : plan_.layout.weight_stride;
    product.b = packed(plan_.keys) + first_key_ / kUnit * kPanel;
    product.b_stride = kPanel;
    product.b_panel_stride = sequence_->padded_keys / kUnit * kPanel;
    product.c = dq;
    product.rows = rows_.size();
    product.depth = columns_.size() / kUnit;
    multiply<false, Update::kAdd>(product);
  }

  static const Unit* as_units(const float* values) { return reinterpret_cast<const Unit*>(values); }

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
            dv_[(columns_.begin + j) * plan_.padded_v + c] += p * element(dout, rows_.begin + r, c);
          }
          for (std::int64_t c = 0; c < problem.dim_qk; ++c) {
            dk_[(columns_.begin + j) * plan_.padded_qk + c] += ds * plan_.q_factor * element(q, rows_.begin + r, c);
            dq[r * plan_.padded_qk + c] += ds * element(k, first_key_ + j, c);
          }
        }
      });
    }
  }

  // P and dS as bfloat16 pairs: along the queries for dV and dK, along the keys for dQ.
  void round_to_pairs() {
    const std::int64_t count = columns_.size();
    const std::int64_t stride = plan_.layout.score_stride;
    Unit* p_pairs = unit_slot(plan_.layout.p_pairs);
    Unit* ds_pairs = unit_slot(plan_.layout.ds_pairs);
    Unit* ds = unit_slot(plan_.layout.ds);
    if (rows_.size() % 2 != 0) {
      std::fill(scores_ + rows_.size() * stride, scores_ + rows_.size() * stride + count, 0.0F);
      std::fill(dp_ + rows_.size() * stride, dp_ + rows_.size() * stride + count, 0.0F);
    }
    for (std::int64_t r = 0; r < rows_.size(); r += 2) {
      Arithmetic::pair_rows(scores_ + r * stride, scores_ + (r + 1) * stride, count, p_pairs + r / 2 * stride);
      Arithmetic::pair_rows(dp_ + r * stride, dp_ + (r + 1) * stride, count, ds_pairs + r / 2 * stride);
    }
    for (std::int64_t r = 0; r < rows_.size(); ++r) {
      Arithmetic::pair_columns(dp_ + r * stride, count, ds + r * plan_.layout.weight_stride);
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
  Unit* q_;
  Unit* dout_;
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
};
