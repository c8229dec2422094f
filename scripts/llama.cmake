# What the build of llama.cpp leaves out beside its options: each of its projects includes this (CMAKE_PROJECT_INCLUDE).

# Half of the work, for tools alone. The package's build forces the option on; a plain variable hides it.
set(LLAMA_BUILD_COMMON OFF)
