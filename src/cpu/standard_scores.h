// What happens to a row of scores between the matrix products, and the rows that the products must not mix up.
#pragma once

#include <cstdint>

#include "cpu/standard_geometry.h"

namespace tessera::internal {

// The score modifiers of one sequence and query head.
class RowModifiers {
 public:
  RowModifiers(const StandardGeometry& geometry, const ScoreTensors& score, std::int64_t batch, std::int64_t head);

  // From scale * q . k to the score, rounded to the problem's dtype. `row` is the whole row, of which `keys` attend.
  // With `derivative`, also the derivative with respect to scale * q . k.
  void apply(std::int64_t query, Range keys, float* row, float* derivative) const;
  // P to P with dropout.
  void drop(std::int64_t query, Range keys, float* weights) const;
  // dP to dS = P o (dropped dP - delta), and P to P with dropout.
  void softmax_gradient(std::int64_t query, Range keys, float delta, float* weights, float* gradient) const;
  // The head's sink, or -inf.
  float sink() const { return sink_; }

 private:
  void apply_score_function(std::int64_t query, Range keys, float* row, float* derivative) const;
  void add_bias(std::int64_t query, Range keys, float* row) const;
  template <class Body>
  void for_each_dropout_group(std::int64_t query, Range keys, const Body& body) const;

  const Problem& problem_;
  std::int64_t batch_;
  std::int64_t head_;
  std::int64_t diagonal_;
  int threshold_;
  float slope_ = 0;
  float sink_;
  ConstTensorView bias_;
};

// Sets the elements of `keys` that the query does not see.
void fill_gaps(const TileSchedule& schedule, std::int64_t query, Range keys, float value, float* row);
// Rounds the part of a row that attends and clears the rest.
void finish_row(DType dtype, std::int64_t size, Range keys, float* row);

// A matrix product adds weight 0 times every row of its second operand; where such a row holds NaN or Inf that would
// reach queries or keys that do not see it. So those rows are taken out of the products and put in pair by pair
// afterwards.
//
// Zeroes the rows that hold NaN or Inf and sets their flags.
void take_out(float* rows, std::int64_t count, std::int64_t dim, std::uint8_t* flags);

// Some rows of the weights, or of their gradients, of one query head. Blind rows are left out.
struct WeightRows {
  const float* first = nullptr;
  float factor = 1.0F;
  const std::uint8_t* blind = nullptr;  // a flag for each row; null: none is blind
  bool is_blind(std::int64_t row) const { return blind != nullptr && blind[row] != 0; }
};
// Adds factor * weight[query, key] * v[key] to out[query] for the flagged keys that each query of `band` sees.
// `weights` and `out` begin with the band's first query.
void put_in_keys(const StandardGeometry& geometry, const Band& band, const WeightRows& weights,
                 const std::uint8_t* flags, const Rows<const void>& keys, std::int64_t dim, float* out);
// Adds factor * weight[query, key] * q[query] to out[key] for the flagged queries of `head` that see each key of `band`.
// `weights` begins with query 0, `out` with the band's first key.
void put_in_queries(const StandardGeometry& geometry, const Band& band, std::int64_t head, const WeightRows& weights,
                    const std::uint8_t* flags, const Rows<const void>& queries, std::int64_t dim, float* out);

}  // namespace tessera::internal
