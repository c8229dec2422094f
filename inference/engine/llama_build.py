"""Which build of llama.cpp runs models here; slow to import, as llama_cpp is."""

from importlib.metadata import version

from inference.engine.llama_runner import llama

BUILD = (
    f"llama-cpp-python {version('llama-cpp-python')}, llama.cpp {llama.llama_version().decode()}"
)
# The features of the machine that it was built to use.
SYSTEM = llama.llama_print_system_info().decode().strip(" |")
