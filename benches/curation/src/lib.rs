//! Tables to measure with: as large as a million pictures give, the same ones every time.

use std::{fs::File, path::Path, sync::Arc};

use parquet::{
    basic::Compression,
    data_type::{ByteArray, ByteArrayType, DataType, FloatType, Int64Type},
    errors::Result,
    file::{
        metadata::KeyValue,
        properties::WriterProperties,
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::parser::parse_message_type,
};

/// Tags of how a picture was made: what the selection of a million pictures is about. 73 of them, as in Vodka V3.
pub const SELECTED: [&str; 73] = [
    "blurry",
    "blurry_background",
    "blurry_foreground",
    "motion_blur",
    "depth_of_field",
    "bokeh",
    "out_of_focus",
    "film_grain",
    "chromatic_aberration",
    "lens_flare",
    "monochrome",
    "greyscale",
    "sepia",
    "spot_color",
    "limited_palette",
    "high_contrast",
    "muted_color",
    "partially_colored",
    "colorful",
    "dark",
    "night",
    "day",
    "sunset",
    "sunrise",
    "twilight",
    "dusk",
    "sunlight",
    "moonlight",
    "backlighting",
    "sidelighting",
    "light_rays",
    "shade",
    "silhouette",
    "glowing",
    "sparkle",
    "dappled_sunlight",
    "indoors",
    "outdoors",
    "scenery",
    "landscape",
    "cityscape",
    "nature",
    "close-up",
    "portrait",
    "upper_body",
    "cowboy_shot",
    "full_body",
    "lower_body",
    "wide_shot",
    "very_wide_shot",
    "from_above",
    "from_below",
    "from_behind",
    "from_side",
    "dutch_angle",
    "fisheye",
    "panorama",
    "vanishing_point",
    "pov",
    "looking_at_viewer",
    "profile",
    "straight-on",
    "simple_background",
    "white_background",
    "black_background",
    "gradient_background",
    "realistic",
    "photo_(medium)",
    "traditional_media",
    "watercolor_(medium)",
    "sketch",
    "lineart",
    "solo",
];

/// So many tags have the taggers of Vodka V3.
pub const VOCABULARY: usize = 9_083;

/// The tables of a tagger are written in groups of so many rows.
const ROWS_PER_GROUP: usize = 1 << 18;

/// First halves of names, as boorus have them.
const FIRST: &str = "long short red blue green black white grey brown pink purple orange yellow striped torn wet open closed \
     folded large small round square leather wooden metal glass paper silk fur frilled layered pleated sleeveless \
     hooded cropped detached double single multiple holding wearing carrying eating drinking reading sitting \
     standing floating flying falling broken hanging crossed raised tied untied two-tone multicolored plaid \
     polka_dot checkered floral animal cat dog fox rabbit bird dragon fish food fruit flower star heart moon sun \
     cloud snow rain fire water ice stone sand gold silver winter summer school military maid nurse knight";

/// Second halves.
const SECOND: &str = "hair eyes dress shirt skirt jacket coat gloves boots shoes socks hat cap scarf ribbon bow necktie belt bag \
     umbrella sword shield armor cape apron kimono sweater hoodie vest pants shorts swimsuit collar choker \
     necklace earrings bracelet ring crown tiara mask glasses goggles headphones hairband hairclip ears tail \
     wings horns claws halo tree leaf petals grass forest mountain ocean river beach sky bridge building house \
     window door wall floor stairs chair table bed couch pillow blanket curtains lamp candle clock mirror book \
     pen phone camera guitar piano drum cup plate bottle cake bread apple car train";

/// A vocabulary in order of frequency, [`SELECTED`] spread over it from the frequent to the rare.
pub fn vocabulary() -> Vec<String> {
    let with = |second: &'static str| FIRST.split(' ').map(move |first| format!("{first}_{second}"));
    let mut names: Vec<_> = SECOND.split(' ').flat_map(with).collect();
    for (k, name) in SELECTED.iter().enumerate() {
        names.insert(4 + k * (k + 1) / 2, (*name).to_owned());
    }
    names.truncate(VOCABULARY);
    names
}

/// xorshift64* (Vigna 2016).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 0 to 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Draws tags: the one at place k with a probability that falls as 1 / (k + 20), as those of boorus do.
struct Tags {
    cumulative: Vec<f64>,
    random: Random,
    last: Vec<usize>,
}

impl Tags {
    fn new() -> Self {
        let mut sum = 0.0;
        let cumulative = (0..VOCABULARY)
            .map(|place| {
                sum += 1.0 / (place as f64 + 20.0);
                sum
            })
            .collect();
        Self { cumulative, random: Random(0x1234_5678_9abc_def1), last: vec![usize::MAX; VOCABULARY] }
    }

    /// Different tags of a picture with their scores, highest first, none below 0.1.
    fn of(&mut self, picture: usize, count: usize) -> Vec<(usize, f32)> {
        let total = self.cumulative[VOCABULARY - 1];
        let mut tags = Vec::with_capacity(count);
        while tags.len() < count {
            let wanted = self.random.share() * total;
            let place = self.cumulative.partition_point(|sum| *sum < wanted).min(VOCABULARY - 1);
            if self.last[place] != picture {
                self.last[place] = picture;
                let share = self.random.share();
                tags.push((place, (0.1 + 0.9 * share * share) as f32));
            }
        }
        tags.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        tags
    }
}

/// The name of a picture, as it lies in a folder of folders.
pub fn image(number: usize) -> String {
    format!("{:03}/{number:07}.jpg", number / 1000)
}

/// A file with the columns of a row group.
type Writer = SerializedFileWriter<File>;

/// Writes a tag table as `vodka-tag` does. Of each picture there are the number that its tags depend on and the number
/// of its name; so many tags each.
///
/// # Errors
/// When the file cannot be written.
pub fn write_tags(
    path: &Path,
    images: impl ExactSizeIterator<Item = (usize, usize)>,
    tags_per_image: usize,
) -> Result<()> {
    let mut writer = writer(
        path,
        "REQUIRED BYTE_ARRAY image (UTF8); REQUIRED INT64 tag_id; REQUIRED BYTE_ARRAY tag (UTF8); \
         REQUIRED BYTE_ARRAY category (UTF8); REQUIRED FLOAT score;",
    )?;
    let names: Vec<_> = vocabulary().iter().map(|name| ByteArray::from(name.as_str())).collect();
    let general = ByteArray::from("general");
    let mut tags = Tags::new();
    let mut group: (Vec<ByteArray>, Vec<i64>, Vec<ByteArray>, Vec<f32>) = Default::default();
    let mut left = images.len() * tags_per_image;
    for (number, name) in images {
        let image = ByteArray::from(image(name).as_str());
        for (place, score) in tags.of(number, tags_per_image) {
            group.0.push(image.clone());
            group.1.push(place as i64);
            group.2.push(names[place].clone());
            group.3.push(score);
            left -= 1;
            if group.0.len() == ROWS_PER_GROUP || left == 0 {
                let categories = vec![general.clone(); group.0.len()];
                let mut columns = writer.next_row_group()?;
                column::<ByteArrayType>(&mut columns, &group.0)?;
                column::<Int64Type>(&mut columns, &group.1)?;
                column::<ByteArrayType>(&mut columns, &group.2)?;
                column::<ByteArrayType>(&mut columns, &categories)?;
                column::<FloatType>(&mut columns, &group.3)?;
                columns.close()?;
                group = Default::default();
            }
        }
    }
    writer.append_key_value_metadata(KeyValue::new("vodka.min_score".to_owned(), "0.1".to_owned()));
    writer.close().map(|_| ())
}

/// Writes a table of pictures with their sharpness, without the columns that nobody reads here.
///
/// # Errors
/// When the file cannot be written.
pub fn write_pictures(path: &Path, images: usize) -> Result<()> {
    let mut writer = writer(path, "REQUIRED BYTE_ARRAY image (UTF8); REQUIRED FLOAT sharpness;")?;
    let mut random = Random(0x0fed_cba9_8765_4321);
    let numbers: Vec<_> = (0..images).collect();
    for group in numbers.chunks(ROWS_PER_GROUP) {
        let names: Vec<_> = group.iter().map(|number| ByteArray::from(image(*number).as_str())).collect();
        let sharpness: Vec<_> = group.iter().map(|_| (2000.0 * random.share()) as f32).collect();
        let mut columns = writer.next_row_group()?;
        column::<ByteArrayType>(&mut columns, &names)?;
        column::<FloatType>(&mut columns, &sharpness)?;
        columns.close()?;
    }
    writer.close().map(|_| ())
}

fn writer(path: &Path, fields: &str) -> Result<Writer> {
    let schema = parse_message_type(&format!("message table {{ {fields} }}"))?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    Writer::new(File::create(path)?, Arc::new(schema), Arc::new(properties))
}

fn column<T: DataType>(group: &mut SerializedRowGroupWriter<'_, File>, values: &[T::T]) -> Result<()> {
    let mut column = group.next_column()?.expect("the schema has as many columns as are written");
    column.typed::<T>().write_batch(values, None, None)?;
    column.close()
}
