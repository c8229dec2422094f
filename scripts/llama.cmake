# What every build of llama.cpp leaves out: each of its projects includes this (CMAKE_PROJECT_INCLUDE).

# The package's build forces the first on, which is half of the work, for tools alone; a plain variable hides it.
foreach(part LLAMA_BUILD_COMMON LLAMA_BUILD_TOOLS LLAMA_BUILD_EXAMPLES LLAMA_BUILD_TESTS LLAMA_BUILD_SERVER
        LLAVA_BUILD LLAMA_ALL_WARNINGS)
  set(${part} OFF)
endforeach()
