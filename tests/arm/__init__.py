"""Small .tflite graphs on emulated ARM: what is predicted against what happens.

`python -m arm --help` in tests/ runs them; `make test-arm` makes the emulator first.
"""
