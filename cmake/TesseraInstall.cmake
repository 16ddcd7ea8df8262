include(CMakePackageConfigHelpers)

install(TARGETS tessera EXPORT tessera-targets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/tessera" DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")

set(TESSERA_IS_STATIC ON)
if(BUILD_SHARED_LIBS)
  set(TESSERA_IS_STATIC OFF)
endif()
set(TESSERA_HAS_OPENBLAS OFF)
if(TARGET OpenBLAS::OpenBLAS)
  set(TESSERA_HAS_OPENBLAS ON)
endif()

set(config_dir "${CMAKE_INSTALL_LIBDIR}/cmake/tessera")
install(EXPORT tessera-targets NAMESPACE tessera:: DESTINATION ${config_dir})
if(TARGET tessera_mpi)
  install(TARGETS tessera_mpi EXPORT tessera-mpi-targets
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(EXPORT tessera-mpi-targets NAMESPACE tessera:: DESTINATION ${config_dir})
endif()
configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/tessera-config.cmake.in"
  "${CMAKE_CURRENT_BINARY_DIR}/tessera-config.cmake" INSTALL_DESTINATION ${config_dir})
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/tessera-config-version.cmake" COMPATIBILITY SameMinorVersion)
install(FILES
  "${CMAKE_CURRENT_BINARY_DIR}/tessera-config.cmake"
  "${CMAKE_CURRENT_BINARY_DIR}/tessera-config-version.cmake"
  "${PROJECT_SOURCE_DIR}/cmake/FindOpenBLAS.cmake"
  DESTINATION ${config_dir})
