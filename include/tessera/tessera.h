// Everything but what few programs need: transports between processes (mpi.h, nccl.h, tcp.h) and dlpack.h.
#pragma once

#include "tessera/attention.h"
#include "tessera/communicator.h"
#include "tessera/distributed.h"
#include "tessera/error.h"
#include "tessera/mask.h"
#include "tessera/plan.h"
#include "tessera/problem.h"
#include "tessera/score_function.h"
#include "tessera/sequence_layout.h"
#include "tessera/tensor_view.h"
#include "tessera/types.h"
#include "tessera/version.h"
