# Defines hwy::hwy. A cross build seldom has Highway's library for its target; there the host's headers serve, with the
# one instruction set that the target always has (NEON on Arm), whose dispatch needs no library.
if(NOT CMAKE_CROSSCOMPILING)
  find_package(hwy CONFIG REQUIRED)
  return()
endif()

find_path(TESSERA_HIGHWAY_HEADERS hwy/highway.h NO_CMAKE_FIND_ROOT_PATH REQUIRED)
# A folder of its own: the host's include folder would bring the host's system headers along.
set(highway_include "${CMAKE_BINARY_DIR}/highway")
file(MAKE_DIRECTORY "${highway_include}")
file(CREATE_LINK "${TESSERA_HIGHWAY_HEADERS}/hwy" "${highway_include}/hwy" SYMBOLIC)
add_library(hwy::hwy INTERFACE IMPORTED)
target_include_directories(hwy::hwy INTERFACE "${highway_include}")
target_compile_definitions(hwy::hwy INTERFACE HWY_COMPILE_ONLY_STATIC)
