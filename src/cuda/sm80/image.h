// The images of the sm80 family: their names, and the sources of those that are compiled when they are first used.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "cuda/kernel.h"
#include "tessera/problem.h"

namespace tessera::internal {

struct Sm80Family {
  std::string_view name;  // of the table: in small letters that of its macro, and the first part of its images' names
  std::string_view header;
};

// The image of a row (its columns, and its role where it has one) for the elements of its products. Without a function it is one of
// the build, whose `program` reads the modifiers at run time. With one, the modifiers of the problem are compiled into it.
KernelImage sm80_image(const Sm80Family& family, std::initializer_list<int> columns, std::string_view role,
                       std::string_view program, std::string_view element, const Problem& problem);

// Why no row of a table takes the problem: `missing` from the build or, of a function, why none can be compiled.
std::string sm80_no_kernel(const Problem& problem, std::string missing);

}  // namespace tessera::internal
