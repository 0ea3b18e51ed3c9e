# cmake -DGIT=<git or empty> -DROOT=<source tree> -DOUTPUT=<file> -P write_state.cmake
#
# Writes the commit of the tree, empty if there is none, and whether files that it names differ from
# it. A tree that lies inside the repository of something else has no commit of its own.
set(commit "")
set(changed false)
if(GIT)
  execute_process(COMMAND "${GIT}" -C "${ROOT}" rev-parse --show-toplevel HEAD
    OUTPUT_VARIABLE found ERROR_QUIET RESULT_VARIABLE failed OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(failed EQUAL 0 AND found MATCHES "^(.*)\n([0-9a-f]+)$")
    set(top "${CMAKE_MATCH_1}")
    set(head "${CMAKE_MATCH_2}")
    file(REAL_PATH "${top}" top)
    file(REAL_PATH "${ROOT}" root)
    execute_process(COMMAND "${GIT}" -C "${ROOT}" status --porcelain --untracked-files=no
      OUTPUT_VARIABLE changes RESULT_VARIABLE failed ERROR_QUIET)
    if(top STREQUAL root AND failed EQUAL 0)
      set(commit "${head}")
      if(changes)
        set(changed true)
      endif()
    endif()
  endif()
endif()
set(content "\"${commit}\", ${changed}\n")
if(EXISTS "${OUTPUT}")
  file(READ "${OUTPUT}" before)
  if(before STREQUAL content)
    return()
  endif()
endif()
file(WRITE "${OUTPUT}" "${content}")
