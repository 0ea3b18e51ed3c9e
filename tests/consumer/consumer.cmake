# One step of the consumer's tests; see CMakeLists.txt.

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "failed (${result}): ${command}")
  endif()
endfunction()

# The C compiler that belongs to the C++ one.
string(REGEX REPLACE "clang\\+\\+" "clang" cc "${CXX}")
string(REGEX REPLACE "g\\+\\+" "gcc" cc "${cc}")
string(REGEX REPLACE "/c\\+\\+" "/cc" cc "${cc}")

set(programs use_cpp use_c99 use_c11)
set(library ${PREFIX}/${LIBDIR}/libbsfa)

if(STEP STREQUAL "install_consumer")
  run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${PREFIX})
elseif(STEP STREQUAL "install_consumer_static")
  # What is tested is the linking, so nothing is optimised.
  run(${CMAKE_COMMAND} -S ${TREE} -B ${WORK}/build -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${CXX}
    -DCMAKE_BUILD_TYPE=None -DBUILD_SHARED_LIBS=OFF -DBSFA_CUDA=off -DBSFA_BUILD_TESTS=OFF
    -DBSFA_BUILD_APPS=OFF -DBSFA_BUILD_BENCH=OFF -DBSFA_BUILD_INTEGRATIONS=OFF)
  run(${CMAKE_COMMAND} --build ${WORK}/build)
  run(${CMAKE_COMMAND} --install ${WORK}/build --prefix ${PREFIX})
elseif(STEP STREQUAL "layout")
  set(expected include/bsfa/attention.hpp include/bsfa/thresholds.hpp include/bsfa/calibration.hpp
    include/bsfa/bsfa_c.h ${LIBDIR}/pkgconfig/bsfa.pc ${LIBDIR}/cmake/bsfa/bsfaConfig.cmake
    ${LIBDIR}/cmake/bsfa/bsfaConfigVersion.cmake)
  foreach(file IN LISTS expected)
    if(NOT EXISTS ${PREFIX}/${file})
      message(FATAL_ERROR "${file} was not installed")
    endif()
  endforeach()
  if(SHARED)
    # The name that programs record carries the version of the interface.
    string(REGEX REPLACE "^([0-9]+\\.[0-9]+).*" "\\1" interface ${VERSION})
    file(READ_SYMLINK ${library}.so link)
    file(READ_SYMLINK ${library}.so.${interface} versioned)
    if(NOT link STREQUAL "libbsfa.so.${interface}" OR NOT versioned STREQUAL
       "libbsfa.so.${VERSION}" OR NOT EXISTS ${library}.so.${VERSION})
      message(FATAL_ERROR "libbsfa.so -> ${link} -> ${versioned}; expected versions ${interface} "
        "and ${VERSION}")
    endif()
  endif()
  if(NOT SHARED AND NOT EXISTS ${library}.a)
    message(FATAL_ERROR "libbsfa.a was not installed")
  endif()
  # The installed program finds its libraries by itself.
  if(CLI)
    run(${CMAKE_COMMAND} -E env --unset=LD_LIBRARY_PATH ${PREFIX}/${BINDIR}/bsfa info)
  endif()
  # No header may name a private dependency.
  file(GLOB headers ${PREFIX}/include/bsfa/*)
  foreach(header IN LISTS headers)
    file(STRINGS ${header} private REGEX "#include.*(nlohmann|cuda|torch|ggml)")
    if(private)
      message(FATAL_ERROR "${header}: ${private}")
    endif()
  endforeach()
elseif(STEP STREQUAL "find_package")
  set(build ${WORK}/find_package)
  file(REMOVE_RECURSE ${build})
  run(${CMAKE_COMMAND} -S ${SOURCE} -B ${build} -G ${GENERATOR} -DCMAKE_PREFIX_PATH=${PREFIX}
    -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_C_COMPILER=${cc} "-DCMAKE_CXX_FLAGS=${FLAGS}"
    "-DCMAKE_C_FLAGS=${FLAGS}" -DBSFA_EXPECTED_VERSION=${VERSION})
  run(${CMAKE_COMMAND} --build ${build})
  foreach(program IN LISTS programs)
    run(${build}/${program} ${build}/${program}.safetensors)
  endforeach()
elseif(STEP STREQUAL "pkg_config")
  set(build ${WORK}/pkg_config)
  file(REMOVE_RECURSE ${build})
  file(MAKE_DIRECTORY ${build})
  set(ENV{PKG_CONFIG_PATH} ${PREFIX}/${LIBDIR}/pkgconfig)
  run(${PKG_CONFIG} --exact-version=${VERSION} bsfa)
  execute_process(COMMAND ${PKG_CONFIG} --cflags --libs bsfa OUTPUT_VARIABLE flags
    COMMAND_ERROR_IS_FATAL ANY OUTPUT_STRIP_TRAILING_WHITESPACE)
  separate_arguments(flags UNIX_COMMAND "${flags} ${FLAGS} -Wl,-rpath,${PREFIX}/${LIBDIR}")
  set(strict -Wall -Wextra -Wpedantic -Werror)
  run(${CXX} -std=c++20 ${strict} ${SOURCE}/use_cpp.cc -o ${build}/use_cpp ${flags})
  run(${cc} -std=c99 ${strict} ${SOURCE}/use_c.c -o ${build}/use_c99 ${flags} -lm)
  run(${cc} -std=c11 ${strict} ${SOURCE}/use_c.c -o ${build}/use_c11 ${flags} -lm)
  foreach(program IN LISTS programs)
    run(${build}/${program} ${build}/${program}.safetensors)
  endforeach()
else()
  message(FATAL_ERROR "unknown step '${STEP}'")
endif()
