"""How many bits a weight takes in each of the usual quantizations of GGUF files."""

# Measured on Llama 3.1 8B by llama.cpp: tools/quantize/README.md. Smaller models take more, since
# their embeddings, kept at more bits, are a larger part of them.
RECOMMENDED_BITS = {
    "Q2_K": 3.16,
    "Q3_K_S": 3.64,
    "Q3_K_M": 4.00,
    "Q3_K_L": 4.30,
    "Q4_K_S": 4.67,
    "Q4_K_M": 4.89,
    "Q5_K_S": 5.57,
    "Q5_K_M": 5.70,
    "Q6_K": 6.56,
    "Q8_0": 8.50,
    "F16": 16.00,
}
# Found in older files, or slower: larger than another as good. Source: tools/quantize/quantize.cpp.
BITS = {
    **RECOMMENDED_BITS,
    "IQ2_M": 2.93,
    "IQ3_M": 3.76,
    "IQ4_XS": 4.46,
    "IQ4_NL": 4.68,
    "Q4_0": 4.64,
    "Q4_1": 5.11,
    "Q5_0": 5.57,
    "Q5_1": 6.04,
    "BF16": 16.00,
    "F32": 32.00,
}
