"""Images with captions or questions."""

from llmtune.data.info import register_dataset

register_dataset(
    "coco-en",
    dataset_id="modelscope/coco_2014_caption",
    val_splits=("validation",),
    preprocess="llmtune.data.preprocess.vision:coco_caption",
    languages=("en",),
    tags=("vision", "caption"),
    rows=454_617,
    source="https://modelscope.cn/datasets/modelscope/coco_2014_caption",
)
