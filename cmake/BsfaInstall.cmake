# Installation: the library, its headers, the command line, and how others find them
# (find_package(bsfa) and pkg-config). Everything is relative to the prefix, so that an installed
# tree can be moved.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(bsfa_cmake_dir ${CMAKE_INSTALL_LIBDIR}/cmake/bsfa)

target_compile_features(bsfa_headers INTERFACE cxx_std_20)
install(TARGETS bsfa bsfa_headers EXPORT bsfaTargets)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/bsfa DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING PATTERN "*.hpp" PATTERN "*.h")
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(EXPORT bsfaTargets NAMESPACE bsfa:: DESTINATION ${bsfa_cmake_dir})

# A static library leaves what it is linked with to its user.
set(bsfa_static_dependencies "")
if(NOT BUILD_SHARED_LIBS)
  set(bsfa_static_dependencies "find_dependency(Threads)\n")
  get_property(private_libraries GLOBAL PROPERTY BSFA_PRIVATE_LIBRARIES)
  if("${private_libraries}" MATCHES "CUDA::")
    string(APPEND bsfa_static_dependencies "find_dependency(CUDAToolkit)\n")
  endif()
endif()
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/bsfaConfig.cmake.in
  ${PROJECT_BINARY_DIR}/bsfaConfig.cmake INSTALL_DESTINATION ${bsfa_cmake_dir}
  NO_SET_AND_CHECK_MACRO)
# Until 1.0 a minor version may change the interface.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/bsfaConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/bsfaConfig.cmake ${PROJECT_BINARY_DIR}/bsfaConfigVersion.cmake
  DESTINATION ${bsfa_cmake_dir})

file(RELATIVE_PATH bsfa_pc_to_prefix /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
string(REGEX REPLACE "/$" "" bsfa_pc_to_prefix "${bsfa_pc_to_prefix}")
set(bsfa_pc_cflags "")
set(bsfa_pc_libs "")
set(bsfa_pc_libs_private "-lpthread")
if(NOT BUILD_SHARED_LIBS)
  set(bsfa_pc_cflags " -DBSFA_STATIC")
  set(bsfa_pc_libs " -lstdc++ -lm -lpthread")
endif()
configure_file(${PROJECT_SOURCE_DIR}/cmake/bsfa.pc.in ${PROJECT_BINARY_DIR}/bsfa.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/bsfa.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

# The command line, and the module through which it and other llama.cpp programs use the library.
# llama.cpp itself is not installed: its libraries are found where they were linked.
file(RELATIVE_PATH bsfa_bin_to_lib /${CMAKE_INSTALL_BINDIR} /${CMAKE_INSTALL_LIBDIR})
set(bsfa_llama_rpath "")
if(TARGET llama::llama)
  get_target_property(bsfa_llama_library llama::llama IMPORTED_LOCATION)
  cmake_path(GET bsfa_llama_library PARENT_PATH bsfa_llama_rpath)
endif()
if(TARGET bsfa_cli)
  set_target_properties(bsfa_cli PROPERTIES
    INSTALL_RPATH "$ORIGIN/${bsfa_bin_to_lib};${bsfa_llama_rpath}")
  install(TARGETS bsfa_cli)
endif()
if(TARGET ggml_bsfa)
  set_target_properties(ggml_bsfa PROPERTIES INSTALL_RPATH "$ORIGIN;${bsfa_llama_rpath}")
  install(TARGETS ggml_bsfa LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
