"""What the CPU support must find to change in the Megatron-Core version it was written for, module by module.

A new version that moves or renames something makes a row differ, and `tests/parallel/test_cpu.py` names the row. To take a new
version on: read the difference in the library's source, correct `_rewrite.py` or `cpu.REBINDINGS` where a cure became void, and
copy the rows from `cpu.applied()`. Modules of GPU-only features (FSDP, CUDA graphs, NCCL buffers, NVSHMEM, Triton fusions, the
dynamic inference engine) are rewritten by the same rules, but no row holds them.
"""

SUPPORTED_VERSION = "0.16.1"

# Importing these brings in every module of EXPECTED.
ENTRY_POINTS = (
    "megatron.core",
    "megatron.core.dist_checkpointing.strategies.torch",
    "megatron.core.models.bert.bert_layer_specs",
    "megatron.core.models.bert.bert_model",
    "megatron.core.models.gpt.gpt_layer_specs",
    "megatron.core.models.gpt.gpt_model",
    "megatron.core.resharding.refit",
    "megatron.core.transformer.moe.moe_layer",
)

# module -> rule (the docstrings of `CpuRewriter`) or rebound name -> how often it applied.
EXPECTED: dict[str, dict[str, int]] = {
    "megatron.core.dist_checkpointing.strategies.async_utils": {"torch.cuda": 5},
    "megatron.core.dist_checkpointing.strategies.filesystem_async": {"torch.cuda": 1},
    "megatron.core.dist_checkpointing.strategies.state_dict_saver": {"'cuda'": 1, "torch.cuda": 1},
    "megatron.core.dist_checkpointing.strategies.torch": {"torch.cuda": 1},
    "megatron.core.distributed.distributed_data_parallel": {"torch.cuda": 5},
    "megatron.core.distributed.param_and_grad_buffer": {"'cuda'": 1, ".pin_memory()": 1, "torch.cuda": 6},
    "megatron.core.fp8_utils": {"'cuda'": 2},
    "megatron.core.jit": {"jit_fuser": 1},
    "megatron.core.models.bert.bert_model": {"torch.cuda": 1},
    "megatron.core.models.common.embeddings.rope_utils": {".cuda()": 1, "pin_memory=": 1},
    "megatron.core.models.common.embeddings.rotary_pos_embedding": {"torch.cuda": 3},
    "megatron.core.models.common.embeddings.yarn_rotary_pos_embedding": {"torch.cuda": 3},
    "megatron.core.models.common.language_module.language_module": {".cuda()": 1},
    "megatron.core.models.gpt.gpt_model": {"torch.cuda": 1},
    "megatron.core.optimizer.clip_grads": {"'cuda'": 5, "'torch.cuda.*Tensor'": 1},
    "megatron.core.optimizer.cpu_offloading.hybrid_optimizer": {
        "'cuda'": 1,
        ".pin_memory()": 1,
        "torch.cuda": 9,
    },
    "megatron.core.optimizer.distrib_optimizer": {"'torch.cuda.*Tensor'": 5, ".cuda()": 1, "torch.cuda": 2},
    "megatron.core.optimizer.grad_scaler": {"'cuda'": 4, ".cuda()": 1, "torch.cuda": 1},
    "megatron.core.optimizer.optimizer": {
        "'cuda'": 4,
        "'torch.cuda.*Tensor'": 3,
        ".cuda()": 2,
        "torch.cuda": 2,
    },
    "megatron.core.parallel_state": {"torch.cuda": 5},
    "megatron.core.pipeline_parallel.p2p_communication": {"torch.cuda": 8},
    "megatron.core.pipeline_parallel.schedules": {"'cuda'": 4},
    "megatron.core.pipeline_parallel.utils": {"'cuda'": 1, "torch.cuda": 10},
    "megatron.core.rerun_state_machine": {"'cuda'": 2, "torch.cuda": 7},
    "megatron.core.resharding.copy_services.gloo_copy_service": {"torch.cuda": 2},
    "megatron.core.tensor_parallel.data": {"'cuda'": 1, ".cuda()": 1, "torch.cuda": 1},
    "megatron.core.tensor_parallel.layers": {"'cuda'": 2, "torch.cuda": 12},
    "megatron.core.tensor_parallel.mappings": {"torch.cuda": 5},
    "megatron.core.tensor_parallel.random": {
        "'cuda'": 4,
        "_get_cuda_rng_state": 1,
        "_set_cuda_rng_state": 1,
        "torch.cuda": 10,
    },
    "megatron.core.tensor_parallel.utils": {"torch.cuda": 2},
    "megatron.core.timers": {"torch.cuda": 3},
    "megatron.core.transformer.attention": {"torch.cuda": 1},
    "megatron.core.transformer.dot_product_attention": {"torch.cuda": 2},
    "megatron.core.transformer.mlp": {"torch.cuda": 2},
    "megatron.core.transformer.module": {"torch.cuda": 4},
    "megatron.core.transformer.moe.experts": {"torch.cuda": 2},
    "megatron.core.transformer.moe.moe_utils": {"'cuda'": 1, "te_general_gemm": 1, "torch.cuda": 1},
    "megatron.core.transformer.moe.router": {"torch.cuda": 6},
    "megatron.core.transformer.moe.shared_experts": {"torch.cuda": 8},
    "megatron.core.transformer.moe.token_dispatcher": {
        "'cuda'": 1,
        "maybe_move_tensor_to_cpu": 1,
        "torch.cuda": 4,
    },
    "megatron.core.transformer.multi_token_prediction": {"torch.cuda": 2},
    "megatron.core.transformer.transformer_layer": {"torch.cuda": 2},
    "megatron.core.transformer.utils": {"'cuda'": 2},
    "megatron.core.utils": {"'cuda'": 6, ".cuda()": 1, "pin_memory=": 4, "torch.cuda": 17},
}
