# Who may include whom, enforced.
#
#   api -> {cpu, cuda, reference, calibration, io} -> core -> include/bsfa
#
# A layer is a folder of src/. Its headers are included as "<layer>/<file>", and only by the layers
# that name it in DEPENDS: each layer exposes one directory that holds nothing but a link to itself,
# so an include that the diagram does not allow finds no file.

# bsfa_layer(<name> SOURCES <file>... [DEPENDS <layer>...])
function(bsfa_layer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  bsfa_layer_root(${name} root)
  add_library(bsfa_${name} OBJECT ${ARG_SOURCES})
  target_link_libraries(bsfa_${name} PUBLIC bsfa_headers PRIVATE bsfa_warnings)
  target_include_directories(bsfa_${name} PUBLIC $<BUILD_INTERFACE:${root}>)
  target_compile_definitions(bsfa_${name} PRIVATE BSFA_BUILDING)
  foreach(dependency IN LISTS ARG_DEPENDS)
    # Only the include path: the objects are linked once, into the library.
    bsfa_layer_root(${dependency} dependency_root)
    target_include_directories(bsfa_${name} PUBLIC $<BUILD_INTERFACE:${dependency_root}>)
  endforeach()
  set_property(GLOBAL APPEND PROPERTY BSFA_LAYERS ${name})
endfunction()

function(bsfa_layer_root name result)
  set(root ${PROJECT_BINARY_DIR}/layers/${name})
  file(MAKE_DIRECTORY ${root})
  file(CREATE_LINK ${PROJECT_SOURCE_DIR}/src/${name} ${root}/${name} SYMBOLIC)
  set(${result} ${root} PARENT_SCOPE)
endfunction()

# bsfa_backend(<name>): a layer that defines `const Backend& bsfa::<name>_backend()`. The registry
# is generated from these calls, so that a new backend touches no file but its own.
function(bsfa_backend name)
  set_property(GLOBAL APPEND PROPERTY BSFA_BACKENDS ${name})
endfunction()
