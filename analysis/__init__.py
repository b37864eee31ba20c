"""What is measured, computed and drawn; see CONTRIBUTING.md for the rooms."""

import os

# Threads wait by sleeping: spinning makes PyTorch several times slower on a CPU shared with other jobs. They
# spin for some microseconds first, without which short products cost a control unit a quarter of its time.
# Read when torch is first imported, so it stands where every import of this package comes past.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# oneDNN keeps a program for each of the last shapes of matrices, by default 1,024 of them: hundreds of MB
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
