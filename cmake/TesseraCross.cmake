# For cross builds, which seldom have this project's dependencies for their target. Highway and fmt serve from the host's
# headers: Highway with the one instruction set that the target always has (NEON on Arm), whose dispatch needs no library,
# fmt in its header-only form. find_package() is led to them.
function(tessera_borrow_headers package target header definition)
  find_path(include_dir "${header}" NO_CACHE NO_CMAKE_FIND_ROOT_PATH REQUIRED)
  cmake_path(GET header PARENT_PATH folder)
  # A folder of its own: the host's include folder would bring the host's system headers along.
  set(borrowed "${CMAKE_BINARY_DIR}/borrowed/${package}")
  file(MAKE_DIRECTORY "${borrowed}")
  file(CREATE_LINK "${include_dir}/${folder}" "${borrowed}/${folder}" SYMBOLIC)
  file(WRITE "${CMAKE_FIND_PACKAGE_REDIRECTS_DIR}/${package}-config.cmake" "
if(NOT TARGET ${target})
  add_library(${target} INTERFACE IMPORTED)
  target_include_directories(${target} INTERFACE \"${borrowed}\")
  target_compile_definitions(${target} INTERFACE ${definition})
endif()
")
endfunction()

tessera_borrow_headers(hwy hwy::hwy hwy/highway.h HWY_COMPILE_ONLY_STATIC)
tessera_borrow_headers(fmt fmt::fmt-header-only fmt/format.h FMT_HEADER_ONLY)
