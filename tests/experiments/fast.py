"""Keys that train any model of ours on the toy data in a second or two."""

FAST = [
    "--llm_backbone=t5-scratch-tiny", "--cf_embedding_size=16", "--cf_epochs=3", "--cf_train_batch_size=16",
    "--mq_codebook_size=16", "--mq_num_codebooks=3", "--mq_user_num_codebooks=3", "--mq_hidden_size=32",
    "--mq_min_steps=20", "--mq_epochs=2", "--llm_epochs=1", "--llm_eval_step=1", "--epochs=2", "--show_progress=false",
]  # fmt: skip
