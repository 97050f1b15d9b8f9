"""The benchmarks behind ``fastswitch bench``: one file per benchmark."""
