#include "support/key_cache.h"

#include <algorithm>
#include <limits>

#include "core/half.h"

namespace tessera::test {

namespace {

// Where key `key` of a sequence begins, in elements.
std::int64_t key_offset(const cli::ProblemTensors& tensors, const ConstTensorView& view, std::int64_t batch,
                        std::int64_t key) {
  const Problem& problem = tensors.problem();
  if (!problem.paged()) return batch * view.strides[0] + key * view.strides[1];
  const ConstTensorView table = tensors.page_table.const_view();
  const std::int64_t page = static_cast<const std::int32_t*>(
      table.data)[batch * table.strides[0] + key / problem.page_size * table.strides[1]];
  return page * view.strides[0] + key % problem.page_size * view.strides[1];
}

// Calls visit(sequence, key, offset of each element) for the keys in use.
template <class Visit>
void for_each_element(const cli::ProblemTensors& tensors, const ConstTensorView& view, const Visit& visit) {
  const std::vector<std::int64_t> lengths = cache_lengths(tensors);
  for (std::int64_t b = 0; b < tensors.problem().batch; ++b) {
    for (std::int64_t key = 0; key < lengths[static_cast<std::size_t>(b)]; ++key) {
      const std::int64_t begin = key_offset(tensors, view, b, key);
      for (std::int64_t head = 0; head < view.shape[2]; ++head) {
        for (std::int64_t i = 0; i < view.shape[3]; ++i) visit(b, key, head, i, begin + head * view.strides[2] + i);
      }
    }
  }
}

double element(const ConstTensorView& view, std::int64_t offset) {
  return internal::load_element(view.data, view.dtype, offset);
}

}  // namespace

std::vector<std::int64_t> cache_lengths(const cli::ProblemTensors& tensors) {
  const Problem& problem = tensors.problem();
  if (!problem.lengths_in_tensors) {
    return problem.key_lengths.empty()
               ? std::vector<std::int64_t>(static_cast<std::size_t>(problem.batch), problem.seq_k)
               : problem.key_lengths;
  }
  std::vector<std::int64_t> lengths;
  for (const double length : tensors.key_lengths.values()) lengths.push_back(static_cast<std::int64_t>(length));
  return lengths;
}

void set_cache_lengths(cli::ProblemTensors& tensors, const std::vector<std::int64_t>& lengths) {
  auto next = lengths.begin();
  tensors.key_lengths.fill([&] { return static_cast<double>(*next++); });
}

void poison_unused(cli::ProblemTensors& tensors) {
  for (cli::HostTensor* tensor : {&tensors.k, &tensors.v}) {
    const TensorView view = tensor->view();
    std::vector<std::pair<std::int64_t, double>> used;
    for_each_element(tensors, view, [&](auto, auto, auto, auto, std::int64_t offset) {
      used.emplace_back(offset, element(view, offset));
    });
    tensor->poison();
    for (const auto& [offset, value] : used) internal::store_element(view.data, view.dtype, offset, value);
  }
}

cli::ProblemTensors without_cache(const cli::ProblemTensors& tensors) {
  Problem problem = tensors.problem();
  problem.key_lengths = cache_lengths(tensors);
  problem.lengths_in_tensors = false;
  problem.page_size = 0;
  cli::ProblemTensors result(problem, {});
  const auto copy = [](const cli::HostTensor& from, cli::HostTensor& to) {
    const std::vector<double> values = from.values();
    auto next = values.begin();
    to.fill([&] { return *next++; });
  };
  copy(tensors.q, result.q);
  copy(tensors.alibi_slopes, result.alibi_slopes);
  copy(tensors.sinks, result.sinks);
  for (const auto& [from, to] : {std::pair{&tensors.k, &result.k}, std::pair{&tensors.v, &result.v}}) {
    const ConstTensorView source = from->const_view();
    const TensorView target = to->view();
    for_each_element(
        tensors, source, [&](std::int64_t b, std::int64_t key, std::int64_t head, std::int64_t i, std::int64_t offset) {
          internal::store_element(target.data, target.dtype,
                                  b * target.strides[0] + key * target.strides[1] + head * target.strides[2] + i,
                                  element(source, offset));
        });
  }
  return result;
}

Problem cache_problem(std::int64_t page_size, bool lengths_in_tensors) {
  Problem problem;
  problem.dtype = DType::bfloat16;
  problem.batch = 4;
  problem.seq_q = 3;
  problem.seq_k = 333;
  problem.heads_q = 6;
  problem.heads_kv = 2;
  problem.dim_qk = 64;
  problem.dim_v = 40;
  problem.mask = Mask::causal();
  problem.page_size = page_size;
  problem.lengths_in_tensors = lengths_in_tensors;
  return problem;
}

}  // namespace tessera::test
