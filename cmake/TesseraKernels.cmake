# Compiles the GPU kernels to images (cubins), with nvcc alone, and puts them into the library as bytes.
#
# A row NAME(columns..., build set) of a src/cuda/**/table.def, for each mask and dtype, is one image; what the row means is
# up to the kernel.cuh beside the table, whose macro NAME_INSTANCE(image, columns..., mask, dtype) defines the kernel.
# A src/cuda/common/<name>.cu is the image <name>.
set(TESSERA_KERNEL_MASKS dense causal window)
set(TESSERA_KERNEL_DTYPES bfloat16 float16)
# Of the rows of the build set `default`, when no more than these are built.
set(TESSERA_KERNEL_DEFAULT_DTYPES bfloat16 float16)

set(tessera_kernel_folder "${CMAKE_CURRENT_BINARY_DIR}/kernels")

# Appends to TESSERA_IMAGES, and defines how the image is compiled.
function(tessera_add_image name source)
  set(cubin "${tessera_kernel_folder}/${name}.cubin")
  add_custom_command(OUTPUT "${cubin}"
    COMMAND ${CMAKE_COMMAND}
      -D "NVCC=${TESSERA_NVCC}" -D "VERSION=${TESSERA_NVCC_VERSION}"
      -D "FLAGS=${TESSERA_NVCC_FLAGS};--expt-relaxed-constexpr;-I;${CMAKE_CURRENT_SOURCE_DIR};-Xptxas;-v"
      -D "SOURCE=${source}" -D "CUBIN=${cubin}" -D "CACHE=${TESSERA_CUDA_CACHE}" -D "STRICT=${TESSERA_CUDA_STRICT}"
      -P "${PROJECT_SOURCE_DIR}/cmake/compile_kernel.cmake"
    DEPENDS "${source}" "${PROJECT_SOURCE_DIR}/cmake/compile_kernel.cmake" "${TESSERA_NVCC}"
    DEPFILE "${cubin}.d"
    COMMENT "Compiling kernel ${name}" VERBATIM)
  set(TESSERA_IMAGES ${TESSERA_IMAGES} "${name}" PARENT_SCOPE)
endfunction()

# One row of a table: its images.
function(tessera_add_row table row)
  if(NOT row MATCHES "^TESSERA_([A-Z0-9_]+)\\(([^()]+)\\)")
    message(FATAL_ERROR "${table}: '${row}' is not TESSERA_NAME(columns..., build set)")
  endif()
  set(macro "TESSERA_${CMAKE_MATCH_1}_INSTANCE")
  string(TOLOWER "${CMAKE_MATCH_1}" kernel)
  string(REGEX REPLACE " *, *" ";" columns "${CMAKE_MATCH_2}")
  list(POP_BACK columns build_set)
  if(NOT build_set MATCHES "^(default|all)$")
    message(FATAL_ERROR "${table}: '${row}': the build set is ${build_set}; accepted: default, all")
  endif()
  set(dtypes ${TESSERA_KERNEL_DTYPES})
  if(NOT TESSERA_CUDA_KERNELS STREQUAL "all")
    if(build_set STREQUAL "all")
      return()
    endif()
    set(dtypes ${TESSERA_KERNEL_DEFAULT_DTYPES})
  endif()
  cmake_path(GET table PARENT_PATH folder)
  list(JOIN columns "_" tile)
  foreach(mask IN LISTS TESSERA_KERNEL_MASKS)
    foreach(dtype IN LISTS dtypes)
      set(name "${kernel}_${tile}_${mask}_${dtype}")
      list(JOIN columns ", " arguments)
      file(CONFIGURE OUTPUT "${tessera_kernel_folder}/${name}.cu" @ONLY
        CONTENT "#include \"${folder}/kernel.cuh\"\n${macro}(${name}, ${arguments}, ${mask}, ${dtype})\n")
      tessera_add_image("${name}" "${tessera_kernel_folder}/${name}.cu")
    endforeach()
  endforeach()
  set(TESSERA_IMAGES "${TESSERA_IMAGES}" PARENT_SCOPE)
endfunction()

# The source with every image's bytes and their list, in the order that a byte-wise comparison gives.
function(tessera_write_embedded source)
  set(bytes "")
  set(entries "")
  foreach(name IN LISTS TESSERA_IMAGES)
    string(APPEND bytes "TESSERA_IMAGE(${name}, \"${tessera_kernel_folder}/${name}.cubin\")\n")
    string(APPEND entries "      EmbeddedImage{\"${name}\", image(tessera_image_${name}, tessera_image_end_${name})},\n")
  endforeach()
  list(LENGTH TESSERA_IMAGES count)
  configure_file("${PROJECT_SOURCE_DIR}/cmake/embedded.cpp.in" "${source}" @ONLY)
endfunction()

set(TESSERA_IMAGES "")
file(GLOB_RECURSE tessera_tables CONFIGURE_DEPENDS RELATIVE "${CMAKE_CURRENT_SOURCE_DIR}" "cuda/table.def")
foreach(table IN LISTS tessera_tables)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${table}")
  file(STRINGS "${table}" rows REGEX "^TESSERA_")
  foreach(row IN LISTS rows)
    tessera_add_row("${table}" "${row}")
  endforeach()
endforeach()
file(GLOB tessera_common_kernels CONFIGURE_DEPENDS "cuda/common/*.cu")
foreach(source IN LISTS tessera_common_kernels)
  cmake_path(GET source STEM name)
  tessera_add_image("${name}" "${source}")
endforeach()

list(SORT TESSERA_IMAGES)
list(TRANSFORM TESSERA_IMAGES PREPEND "${tessera_kernel_folder}/" OUTPUT_VARIABLE tessera_cubins)
list(TRANSFORM tessera_cubins APPEND ".cubin")
tessera_write_embedded("${tessera_kernel_folder}/embedded.cpp")

add_custom_target(cuda-kernels DEPENDS ${tessera_cubins})
add_library(tessera_images OBJECT "${tessera_kernel_folder}/embedded.cpp")
add_dependencies(tessera_images cuda-kernels)
target_include_directories(tessera_images PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
# A compiler cache sees the name of an image, not what is in it.
set_target_properties(tessera_images PROPERTIES CXX_COMPILER_LAUNCHER "")
set_source_files_properties("${tessera_kernel_folder}/embedded.cpp" PROPERTIES OBJECT_DEPENDS "${tessera_cubins}")
target_sources(tessera PRIVATE $<TARGET_OBJECTS:tessera_images>)

find_package(Python3 QUIET COMPONENTS Interpreter)
if(Python3_FOUND)
  set(report_options "")
  if(TESSERA_CUDA_KERNELS STREQUAL "all")
    set(report_options --markdown "${PROJECT_SOURCE_DIR}/docs/kernels.md")
  endif()
  list(JOIN tessera_cubins ".log\n" logs)
  file(CONFIGURE OUTPUT "${tessera_kernel_folder}/logs.txt" CONTENT "${logs}.log\n" @ONLY)
  add_custom_target(cuda-report
    COMMAND Python3::Interpreter "${PROJECT_SOURCE_DIR}/scripts/kernel_report.py" ${report_options}
      "@${tessera_kernel_folder}/logs.txt"
    DEPENDS ${tessera_cubins} COMMENT "GPU kernels" VERBATIM USES_TERMINAL)
endif()
