// The steps of a flash problem as free functions, and the table of them.

inline void pack_tile(const FlashPlan& plan, const PackItem& item, const PackedOperand& operand, bool transposed,
                      const ConstTensorView& view, const ConstTensorView& page_table, std::int64_t dim,
                      std::int64_t units, const WorkspaceSlot<std::uint8_t>& special, std::span<std::byte> workspace) {
  const FlashSequence& sequence = plan.sequences[static_cast<std::size_t>(item.batch)];
  const std::int64_t first = item.key_tile * plan.tile_k;
  const Range range{first, std::min(first + plan.tile_k, sequence.span.keys)};
  const auto rows = key_rows_of(view, page_table, item.batch, sequence.span.key_row, item.head_kv);
  const Operand out = packed_rows(plan, operand, sequence, item.head_kv, workspace);
  const bool found = transposed
                         ? pack_transposed<Arithmetic>(rows, range, dim, units, out.at(first * units))
                         : pack_rows<Arithmetic>(rows, range, std::min(first + plan.tile_k, sequence.padded_keys), dim,
                                                 sequence.padded_keys / Arithmetic::kDepthUnit * kPanel,
                                                 out.at(first / Arithmetic::kDepthUnit * kPanel));
  special.in(workspace)[plan.special_index(sequence, item.head_kv, item.key_tile)] = found ? 1 : 0;
}

inline void pack_forward(const FlashPlan& plan, const ForwardTensors& tensors, std::span<std::byte> workspace,
                         std::int64_t item) {
  const PackItem& pack = plan.pack_items[static_cast<std::size_t>(item)];
  const Problem& problem = plan.problem;
  pack_tile(plan, pack, plan.keys_t, true, tensors.k, tensors.page_table, problem.dim_qk, plan.units_qk,
            plan.special_keys, workspace);
  pack_tile(plan, pack, plan.values, false, tensors.v, tensors.page_table, problem.dim_v, plan.units_v,
            plan.special_values, workspace);
}

inline void pack_backward(const FlashPlan& plan, const BackwardTensors& tensors, std::span<std::byte> workspace,
                          std::int64_t item) {
  const PackItem& pack = plan.pack_items[static_cast<std::size_t>(item)];
  const Problem& problem = plan.problem;
  pack_tile(plan, pack, plan.keys_t, true, tensors.k, {}, problem.dim_qk, plan.units_qk, plan.special_keys, workspace);
  pack_tile(plan, pack, plan.values_t, true, tensors.v, {}, problem.dim_v, plan.units_v, plan.special_values,
            workspace);
  pack_tile(plan, pack, plan.keys, false, tensors.k, {}, problem.dim_qk, plan.units_qk, plan.special_keys, workspace);
}

inline void forward(const FlashPlan& plan, const ForwardTensors& tensors, std::span<std::byte> workspace, int thread,
                    std::int64_t item) {
  [[maybe_unused]] const ProductSession session;
  FlashForward<Arithmetic>(plan, tensors, workspace, thread, plan.items[static_cast<std::size_t>(item)]).run();
}

inline void backward(const FlashPlan& plan, const BackwardTensors& tensors, std::span<std::byte> workspace, int thread,
                     std::int64_t item) {
  [[maybe_unused]] const ProductSession session;
  FlashBackward<Arithmetic>(plan, tensors, workspace, thread).run(plan.items[static_cast<std::size_t>(item)]);
}

inline void bias_gradient(const FlashPlan& plan, const BackwardTensors& tensors, std::span<std::byte> workspace,
                          int thread, const BiasPart& part) {
  [[maybe_unused]] const ProductSession session;
  FlashBackward<Arithmetic>(plan, tensors, workspace, thread).run_bias(part);
}

inline float dot_product(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b, std::int64_t count) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto sum0 = hn::Zero(d);
  auto sum1 = sum0;
  std::int64_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    sum0 = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), sum0);
    sum1 = hn::MulAdd(hn::LoadU(d, a + i + lanes), hn::LoadU(d, b + i + lanes), sum1);
  }
  float sum = sum_of(d, hn::Add(sum0, sum1));
  for (; i < count; ++i) {
    sum += a[i] * b[i];
  }
  return sum;
}

inline void row_statistics(const FlashPlan& plan, const BackwardTensors& tensors, std::span<std::byte> workspace,
                           std::int64_t index) {
  const FlashItem& item = plan.line_items[static_cast<std::size_t>(index)];
  const FlashSequence& sequence = plan.sequences[static_cast<std::size_t>(item.batch)];
  const std::int64_t row = sequence.span.query_row;
  const auto out = rows_of(tensors.out, item.batch, row, item.head);
  const auto dout = rows_of(tensors.dout, item.batch, row, item.head);
  const auto lse = line_of(tensors.lse, item.batch, row, item.head);
  const std::int64_t line = plan.query_line(sequence, item.head);
  alignas(64) float out_row[FlashPlan::kMaxDim];
  alignas(64) float dout_row[FlashPlan::kMaxDim];
  for (std::int64_t r = item.rows.begin; r < item.rows.end; ++r) {
    prefetch_ahead(out, r, item.rows.end, plan.problem.dim_v);
    prefetch_ahead(dout, r, item.rows.end, plan.problem.dim_v);
    load_row(out.at(r), out.dtype, plan.problem.dim_v, 1.0F, out_row);
    load_row(dout.at(r), dout.dtype, plan.problem.dim_v, 1.0F, dout_row);
    float delta = dot_product(out_row, dout_row, plan.problem.dim_v);
    if (!tensors.dlse.absent()) {
      const auto dlse = line_of(tensors.dlse, item.batch, row, item.head);
      delta -= *static_cast<const float*>(dlse.at(r));
    }
    plan.lse_log2.in(workspace)[line + r] = *static_cast<const float*>(lse.at(r)) * std::numbers::log2e_v<float>;
    plan.delta.in(workspace)[line + r] = delta;
  }
}

inline void reduce_dq(const FlashPlan& plan, const BackwardTensors& tensors, std::span<std::byte> workspace,
                      std::int64_t index) {
  const FlashItem& item = plan.line_items[static_cast<std::size_t>(index)];
  const FlashSequence& sequence = plan.sequences[static_cast<std::size_t>(item.batch)];
  const Problem& problem = plan.problem;
  const auto dq = rows_of(tensors.dq, item.batch, sequence.span.query_row, item.head);
  alignas(64) float zeros[FlashPlan::kMaxDim] = {};
  for (std::int64_t r = item.rows.begin; r < item.rows.end; ++r) {
    float* HWY_RESTRICT sum = nullptr;
    for (std::int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      const std::int64_t line = plan.dq_line(chunk, sequence, item.head);
      if (plan.dq_begun.in(workspace)[line + r / plan.tile_q * plan.tile_q] == 0) {
        continue;
      }
      float* partial = plan.dq_partials.in(workspace) + (line + r) * plan.padded_qk;
      if (sum == nullptr) {
        sum = partial;
        continue;
      }
      for (std::int64_t c = 0; c < plan.padded_qk; ++c) {
        sum[c] += partial[c];
      }
    }
    store_row(sum == nullptr ? zeros : sum, dq.dtype, problem.dim_qk, problem.softmax_scale(), dq.at(r));
  }
}

constexpr CpuKernels kernels_table(const char* isa, const ExpectedShare& share, const CpuKernels* bfloat16,
                                   const CpuKernels* otherwise = nullptr,
                                   bool (*pays)(const Problem&, Pass) = nullptr) {
  return {isa,
          {Arithmetic::kLanes, kPanel, Arithmetic::kDepthUnit, kTakesTransposedA, Arithmetic::kPlanes},
          share,
          bfloat16,
          otherwise,
          pays,
          &pack_forward,
          &pack_backward,
          &forward,
          &backward,
          &bias_gradient,
          &row_statistics,
          &reduce_dq};
}
