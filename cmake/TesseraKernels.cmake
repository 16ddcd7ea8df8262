# Compiles the GPU kernels to images (cubins or fatbins), with nvcc alone, and puts them into the library as bytes.
#
# A row NAME(columns..., build set) of a src/cuda/**/table.def, for each mask and dtype, is one image; what the row means is
# up to the kernel.cuh beside the table, whose macro NAME_INSTANCE(image, columns..., mask, dtype) defines the kernel.
# A row TESSERA_SM80_NAME(inputs, columns..., build set), or of TESSERA_DECODE, is one image for each dtype of its inputs: half,
# float32 or tf32.
# A src/cuda/common/<name>.cu, for every GPU, or src/cuda/sm90/<name>.cu is the image <name>.
set(TESSERA_KERNEL_MASKS dense causal window)
# A row NAME_LISTED(...) is one of NAME for this mask alone.
set(TESSERA_KERNEL_MASKS_LISTED listed)
# A row NAME_PROGRAMS(columns..., program, build set) is one of NAME with a score program (a word of cuda/tile/table_program.h, with which
# the names of its images end), for these masks: an image that a plan finds where it would compile one.
set(TESSERA_KERNEL_MASKS_PROGRAMS dense causal)
set(TESSERA_KERNEL_DTYPES bfloat16 float16)
# Weights in float16 need a maximum.
set(TESSERA_KERNEL_DTYPES_softcap_bounded bfloat16)
# Of the rows of the build set `default`, when no more than these are built.
set(TESSERA_KERNEL_DEFAULT_DTYPES bfloat16 float16)
if(TESSERA_CUDA_KERNELS STREQUAL "few")
  set(TESSERA_KERNEL_DEFAULT_DTYPES bfloat16)
endif()
set(TESSERA_KERNEL_INPUTS half float32 tf32)
set(TESSERA_KERNEL_INPUTS_half bfloat16)
set(TESSERA_KERNEL_INPUTS_float32 float32)
set(TESSERA_KERNEL_INPUTS_tf32 tf32)
if(TESSERA_CUDA_KERNELS STREQUAL "all")
  list(APPEND TESSERA_KERNEL_INPUTS_half float16)
endif()

# An image of the sm80 family holds code for GPUs since Ampere and, for those to come, PTX. Binary code of 8.0 runs on 8.6 and
# 8.9 too.
set(TESSERA_SM80_FLAGS -gencode=arch=compute_80,code=[sm_80,compute_80] -gencode=arch=compute_90,code=sm_90)
set(TESSERA_KERNEL_DEFAULT_DTYPES_LISTED bfloat16)
set(TESSERA_KERNEL_DEFAULT_DTYPES_PROGRAMS bfloat16)

set(tessera_kernel_folder "${CMAKE_CURRENT_BINARY_DIR}/kernels")

# Appends to TESSERA_IMAGES, and defines how the image is compiled: for the one architecture of TESSERA_NVCC_FLAGS or, for the
# KIND fatbin, for all of the sm80 family.
function(tessera_add_image name source)
  cmake_parse_arguments(PARSE_ARGV 2 arg "" "KIND" "")
  set(flags ${TESSERA_NVCC_FLAGS})
  if(arg_KIND STREQUAL "fatbin")
    list(FILTER flags EXCLUDE REGEX "^-gencode=")
    list(APPEND flags ${TESSERA_SM80_FLAGS})
  else()
    set(arg_KIND cubin)
  endif()
  set(cubin "${tessera_kernel_folder}/${name}.cubin")
  add_custom_command(OUTPUT "${cubin}"
    COMMAND ${CMAKE_COMMAND}
      -D "NVCC=${TESSERA_NVCC}" -D "VERSION=${TESSERA_NVCC_VERSION}"
      -D "KIND=${arg_KIND}"
      -D "FLAGS=${flags};--expt-relaxed-constexpr;-I;${CMAKE_CURRENT_SOURCE_DIR};-Xptxas;-v"
      -D "SOURCE=${source}" -D "CUBIN=${cubin}" -D "CACHE=${TESSERA_CUDA_CACHE}" -D "STRICT=${TESSERA_CUDA_STRICT}"
      -P "${PROJECT_SOURCE_DIR}/cmake/compile_kernel.cmake"
    DEPENDS "${source}" "${PROJECT_SOURCE_DIR}/cmake/compile_kernel.cmake" "${TESSERA_NVCC}"
    DEPFILE "${cubin}.d"
    COMMENT "Compiling kernel ${name}" VERBATIM)
  set(TESSERA_IMAGES ${TESSERA_IMAGES} "${name}" PARENT_SCOPE)
endfunction()

# The columns of a row of a table, or nothing if this build leaves it out.
function(tessera_row_columns table row out)
  string(REGEX REPLACE "^[^(]*\\((.*)\\).*$" "\\1" columns "${row}")
  string(REGEX REPLACE " *, *" ";" columns "${columns}")
  list(POP_BACK columns build_set)
  if(NOT build_set MATCHES "^(default|all)$")
    message(FATAL_ERROR "${table}: '${row}': the build set is ${build_set}; accepted: default, all")
  endif()
  if(build_set STREQUAL "all" AND NOT TESSERA_CUDA_KERNELS STREQUAL "all")
    set(columns "")
  endif()
  set(${out} "${columns}" PARENT_SCOPE)
endfunction()

# One row of a table of the sm80 family: its images.
function(tessera_add_sm80_row table row)
  string(REGEX MATCH "^TESSERA_([A-Z0-9_]+)" macro "${row}")
  string(TOLOWER "${CMAKE_MATCH_1}" kernel)
  tessera_row_columns("${table}" "${row}" columns)
  if(NOT columns)
    return()
  endif()
  list(POP_FRONT columns inputs)
  if(NOT inputs IN_LIST TESSERA_KERNEL_INPUTS)
    message(FATAL_ERROR "${table}: '${row}': the inputs are ${inputs}; accepted: ${TESSERA_KERNEL_INPUTS}")
  endif()
  cmake_path(GET table PARENT_PATH folder)
  list(JOIN columns "_" tile)
  list(JOIN columns ", " arguments)
  foreach(dtype IN LISTS TESSERA_KERNEL_INPUTS_${inputs})
    set(name "${kernel}_${tile}_${dtype}")
    file(CONFIGURE OUTPUT "${tessera_kernel_folder}/${name}.cu" @ONLY
      CONTENT "#include \"${folder}/kernel.cuh\"\n${macro}_INSTANCE(${name}, ${arguments}, ${dtype})\n")
    tessera_add_image("${name}" "${tessera_kernel_folder}/${name}.cu" KIND fatbin)
  endforeach()
  set(TESSERA_IMAGES "${TESSERA_IMAGES}" PARENT_SCOPE)
endfunction()

# One row of a table: its images.
function(tessera_add_row table row)
  if(NOT row MATCHES "^TESSERA_([A-Z0-9_]+)\\(([^()]+)\\)")
    message(FATAL_ERROR "${table}: '${row}' is not TESSERA_NAME(columns..., build set)")
  endif()
  set(kernel "${CMAKE_MATCH_1}")
  tessera_row_columns("${table}" "${row}" columns)
  if(NOT columns)
    return()
  endif()
  set(kind "")
  if(kernel MATCHES "^(.*)(_LISTED|_PROGRAMS)$")
    set(kernel "${CMAKE_MATCH_1}")
    set(kind "${CMAKE_MATCH_2}")
  endif()
  set(dtypes ${TESSERA_KERNEL_DTYPES})
  if(NOT TESSERA_CUDA_KERNELS STREQUAL "all")
    set(dtypes ${TESSERA_KERNEL_DEFAULT_DTYPES${kind}})
  endif()
  set(macro "TESSERA_${kernel}_INSTANCE")
  set(ending "")
  set(header "")
  set(program_argument "")
  if(kind STREQUAL "_PROGRAMS")
    list(POP_BACK columns program)
    set(macro "TESSERA_${kernel}_PROGRAM")
    set(ending "_${program}")
    set(header "#include \"cuda/tile/table_program.h\"\n")
    set(program_argument ", tessera::built_features(tessera::TableProgram::${program})")
    if(DEFINED TESSERA_KERNEL_DTYPES_${program})
      set(dtypes ${TESSERA_KERNEL_DTYPES_${program}})
    endif()
  endif()
  string(TOLOWER "${kernel}" kernel)
  cmake_path(GET table PARENT_PATH folder)
  list(JOIN columns "_" tile)
  foreach(mask IN LISTS TESSERA_KERNEL_MASKS${kind})
    foreach(dtype IN LISTS dtypes)
      set(name "${kernel}_${tile}_${mask}_${dtype}${ending}")
      list(JOIN columns ", " arguments)
      file(CONFIGURE OUTPUT "${tessera_kernel_folder}/${name}.cu" @ONLY
        CONTENT "#include \"${folder}/kernel.cuh\"\n${header}${macro}(${name}, ${arguments}, ${mask}, ${dtype}${program_argument})\n")
      tessera_add_image("${name}" "${tessera_kernel_folder}/${name}.cu")
    endforeach()
  endforeach()
  set(TESSERA_IMAGES "${TESSERA_IMAGES}" PARENT_SCOPE)
endfunction()

# Of the rows of the build set `default`, the first that has the same words but for its numbers: all code that the set
# compiles, at one size each, for a machine that only has to see that it compiles.
function(tessera_few_rows rows out)
  set(kinds "")
  set(few "")
  foreach(row IN LISTS rows)
    string(REGEX REPLACE "[0-9 ]+" "" kind "${row}")
    if(row MATCHES ", *default\\)" AND NOT kind IN_LIST kinds)
      list(APPEND kinds "${kind}")
      list(APPEND few "${row}")
    endif()
  endforeach()
  set(${out} "${few}" PARENT_SCOPE)
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
  set(source_entries "")
  foreach(name IN LISTS TESSERA_KERNEL_SOURCES)
    string(MAKE_C_IDENTIFIER "source_${name}" symbol)
    string(APPEND bytes "TESSERA_IMAGE(${symbol}, \"${CMAKE_CURRENT_SOURCE_DIR}/${name}\")\n")
    string(APPEND source_entries "      SourceFile{\"${name}\", text(tessera_image_${symbol}, tessera_image_end_${symbol})},\n")
  endforeach()
  list(LENGTH TESSERA_KERNEL_SOURCES source_count)
  configure_file("${PROJECT_SOURCE_DIR}/cmake/embedded.cpp.in" "${source}" @ONLY)
endfunction()

set(TESSERA_IMAGES "")
file(GLOB_RECURSE tessera_tables CONFIGURE_DEPENDS RELATIVE "${CMAKE_CURRENT_SOURCE_DIR}" "cuda/table.def")
foreach(table IN LISTS tessera_tables)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${table}")
  file(STRINGS "${table}" rows REGEX "^TESSERA_")
  if(TESSERA_CUDA_KERNELS STREQUAL "few")
    tessera_few_rows("${rows}" rows)
  endif()
  foreach(row IN LISTS rows)
    if(row MATCHES "^TESSERA_(SM80_|DECODE\\()")
      tessera_add_sm80_row("${table}" "${row}")
    else()
      tessera_add_row("${table}" "${row}")
    endif()
  endforeach()
endforeach()
file(GLOB tessera_common_kernels CONFIGURE_DEPENDS "cuda/common/*.cu")
foreach(source IN LISTS tessera_common_kernels)
  cmake_path(GET source STEM name)
  tessera_add_image("${name}" "${source}" KIND fatbin)
endforeach()
file(GLOB tessera_sm90_kernels CONFIGURE_DEPENDS "cuda/sm90/*.cu")
foreach(source IN LISTS tessera_sm90_kernels)
  cmake_path(GET source STEM name)
  tessera_add_image("${name}" "${source}")
endforeach()

# What kernels include, for those that are compiled when they are first used.
file(GLOB TESSERA_KERNEL_SOURCES CONFIGURE_DEPENDS RELATIVE "${CMAKE_CURRENT_SOURCE_DIR}"
  "cuda/tensor_map.h" "cuda/ptx/*.cuh" "cuda/tile/*.h" "cuda/tile/*.cuh" "cuda/sm*/*.cuh" "cuda/sm*/*/*.cuh"
  "cuda/sm*/*/*.h")
list(SORT TESSERA_KERNEL_SOURCES)
list(TRANSFORM TESSERA_KERNEL_SOURCES PREPEND "${CMAKE_CURRENT_SOURCE_DIR}/" OUTPUT_VARIABLE tessera_source_paths)

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
set_source_files_properties("${tessera_kernel_folder}/embedded.cpp" PROPERTIES OBJECT_DEPENDS "${tessera_cubins};${tessera_source_paths}")
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
  list(JOIN tessera_cubins "\n" images)
  file(CONFIGURE OUTPUT "${tessera_kernel_folder}/images.txt" CONTENT "${images}\n" @ONLY)
  set(tessera_instructions Python3::Interpreter "${PROJECT_SOURCE_DIR}/scripts/kernel_instructions.py"
    --table "${PROJECT_SOURCE_DIR}/scripts/kernel_instructions.txt" --nvcc "${TESSERA_NVCC_VERSION}"
    "@${tessera_kernel_folder}/images.txt")
  add_custom_target(cuda-instructions COMMAND ${tessera_instructions} --write DEPENDS ${tessera_cubins} VERBATIM)
  if(TESSERA_BUILD_TESTS)
    enable_testing()
    add_test(NAME kernels.plain_ones_have_not_grown COMMAND ${tessera_instructions})
    set_tests_properties(kernels.plain_ones_have_not_grown PROPERTIES LABELS cpu)
  endif()
endif()
